# The server and its weights, and nothing else: no TensorFlow, no Jupyter, no compiler.
#   docker build --tag labsupport . && docker run --read-only --tmpfs /tmp --volume predictions:/data \
#     --memory 1g --env LAB_TOKEN="$(openssl rand -hex 16)" --publish 127.0.0.1:8000:8000 labsupport
# deploy/README.md says more. What changes seldom comes first, so that a change of code rebuilds one layer.

FROM python:3.11-slim-bookworm AS install
COPY deploy/docker/server.lock /build/
RUN python3 -m venv /opt/lab \
    && /opt/lab/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes --requirement /build/server.lock

# the weights, and the network that is made of them; only what the conversion reads: other changes do not repeat it
FROM install AS model
COPY labsupport/__init__.py labsupport/arguments.py labsupport/background.py labsupport/paths.py /build/labsupport/
COPY labsupport/models /build/labsupport/models
WORKDIR /build
ENV HOME=/home/lab
RUN /opt/lab/bin/python -c "from labsupport import models; models.ensure('yolov3-tiny'); models.network('yolov3-tiny')"

FROM install AS packages
RUN /opt/lab/bin/pip uninstall --yes --quiet setuptools pip \
    && find /opt/lab -name __pycache__ -prune -exec rm -r {} +

FROM python:3.11-slim-bookworm
RUN groupadd --gid 10001 lab \
    && useradd --uid 10001 --gid lab --home-dir /home/lab --no-create-home --shell /usr/sbin/nologin lab \
    && install --directory --owner lab --group lab /data /data/images /data/notebooks \
    && install --directory --owner lab --group lab --mode 700 /keys
COPY --from=packages /opt/lab /opt/lab
COPY --from=model /home/lab /home/lab
COPY labsupport /opt/lab/app/labsupport
# LAB_ROOT is where it writes: the log of predictions, and who answers. LAB_KEYS is apart, so that no copy of the data has keys
ENV PATH=/opt/lab/bin:/usr/local/bin:/usr/bin:/bin \
    PYTHONPATH=/opt/lab/app \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    HOME=/home/lab \
    LAB_ROOT=/data \
    LAB_KEYS=/keys
USER 10001:10001
WORKDIR /data
VOLUME /data /keys
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=20s --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2).read()"]
# beyond loopback it asks for LAB_TOKEN (or LAB_TOKEN_FILE), and does not start without
ENTRYPOINT ["python", "-m", "labsupport", "serve", "--host", "0.0.0.0", "--port", "8000"]
CMD []
