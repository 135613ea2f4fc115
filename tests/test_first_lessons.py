"""The check cells of the first three lessons: a right answer passes, and each wrong one gets its words."""

import numpy as np
import pytest
import requests

from labsupport import exercises
from labsupport.exercises.release import client_checks, serving_checks

ADDRESS = "http://127.0.0.1:9000/detect?model=yolov3-tiny&confidence=0.3"


@pytest.mark.parametrize(
    "check, answer, verdict",
    [
        (serving_checks.question_zero, 737_280, "Right."),
        (serving_checks.question_zero, 245_760, "number of pixels"),
        (serving_checks.question_zero, 995, "you added"),
        (serving_checks.question_zero, True, "give a whole number"),
        (serving_checks.question_zero, 7, "7 is not rows times columns"),
        (serving_checks.from_a_dict, 62, "Right."),
        (serving_checks.from_a_dict, {"left": 62}, "the whole box"),
        (serving_checks.from_a_dict, "dog", "that is a text"),
        (serving_checks.from_a_dict, 258, "the top edge"),
        (serving_checks.from_a_dict, None, "does not stand under"),
        (serving_checks.sure_labels, ["person", "dog"], "Right."),
        (serving_checks.sure_labels, "person", "give a list"),
        (serving_checks.sure_labels, [("person", 0.98)], "these are pairs"),
        (serving_checks.sure_labels, ["person", "dog", "sheep"], "0.78"),
        (serving_checks.sure_labels, ["dog"], "which objects have more than 0.8?"),
        (serving_checks.share_of_errors, np.float64(0.4), "Right."),
        (serving_checks.share_of_errors, np.int64(2), "how many are wrong"),
        (serving_checks.share_of_errors, 0.6, "the share of right answers"),
        (serving_checks.share_of_errors, 40, "in per cent"),
        (serving_checks.share_of_errors, None, "between 0 and 1"),
        (serving_checks.share_of_errors, 0.5, "is not the share of True"),
        (serving_checks.read_a_histogram, 6, "Right."),
        (serving_checks.read_a_histogram, 4, "another bar"),
        (serving_checks.read_a_histogram, 20, "all values"),
        (serving_checks.read_a_histogram, 7, "no bar is 7 high"),
        (serving_checks.read_a_histogram, "6", "give a whole number"),
        (serving_checks.missing_page, 404, "Right."),
        (serving_checks.missing_page, "404", "without quotes"),
        (serving_checks.missing_page, 200, "all is well"),
        (serving_checks.missing_page, 503, "the server failed"),
        (serving_checks.missing_page, 415, "another status"),
        (serving_checks.slow_answers, 51.6, "Right."),
        (serving_checks.slow_answers, 20.5, "the median"),
        (serving_checks.slow_answers, 27.1, "the mean"),
        (serving_checks.slow_answers, 120, "the slowest answer"),
        (serving_checks.slow_answers, np.percentile(serving_checks.LATENCIES, 0.95), "from 0 to 100"),
        (serving_checks.slow_answers, 35, "19 of the 20"),
        (serving_checks.slow_answers, None, "give a number of milliseconds"),
        (serving_checks.four_statuses, [415, 422, 404, 405], "Right."),
        (serving_checks.four_statuses, [200, 422, 404, 405], "request 1 does not get 200"),
        (serving_checks.four_statuses, [415, 415, 404, 405], "request 2 does not get 415"),
        (serving_checks.four_statuses, (415, 422, 503, 405), "request 3 does not get 503"),
        (serving_checks.four_statuses, [415, 422, 404, 404], "request 4 does not get 404"),
        (serving_checks.four_statuses, 415, "give a list of four"),
        (client_checks.built_address, ADDRESS, "Right."),
        (client_checks.built_address, "http://127.0.0.1:9000/detect?confidence=0.3&model=yolov3-tiny", "Right."),
        (client_checks.built_address, 9000, "in quotes"),
        (client_checks.built_address, ADDRESS.replace("9000", "8000"), "does not begin with the address"),
        (client_checks.built_address, ADDRESS.replace("?", "&"), "a question mark"),
        (client_checks.built_address, ADDRESS.replace("detect", "predict"), "the endpoint is /predict"),
        (client_checks.built_address, ADDRESS.replace("&", "?"), "the parameter model"),
        (client_checks.built_address, ADDRESS + "&label=cat", "more parameters than two"),
        (client_checks.send_again, {503}, "Right."),
        (client_checks.send_again, [503], "Right."),
        (client_checks.send_again, 503, "give a set"),
        (client_checks.send_again, {503, 422}, "422 says"),
        (client_checks.send_again, {503, 500}, "500 is not one of the six"),
        (client_checks.send_again, set(), "busy for the moment"),
    ],
)
def test_an_answer(check, answer, verdict, capsys):
    check.check(answer)
    assert verdict in capsys.readouterr().out


def fitting(frame, key, label):
    rows = zip(frame.id, frame.key, frame.detections, strict=True)
    return [id for id, owner, found in rows if owner == key and label in [one.label for one in found or []]]


@pytest.mark.parametrize(
    "find, verdict",
    [
        (fitting, "Right."),
        (
            lambda frame, key, label: fitting(frame[frame.status == 200], key, label)[::-1],
            "the oldest answer comes first",
        ),
        (lambda frame, key, label: list(frame.id[frame.key == key]), "has no cat in it"),
        (lambda frame, key, label: ["r1", "r2"], "another user"),
        (lambda frame, key, label: ["r1", "r7", "r7"], "name its id once"),
        (lambda frame, key, label: ["r1", "r7"], "missing: r6"),
        (lambda frame, key, label: frame.answer, "it raised AttributeError"),
    ],
)
def test_answers_with(find, verdict, capsys):
    exercises.answers_with.check(find)
    assert verdict in capsys.readouterr().out


def client(tries=4, longest=5, again=(503,), last=False):
    """A client that repeats after the statuses `again`, and with `last` also waits after its last try."""

    def ask(send, sleep):
        for number in range(tries):
            response = send()
            wait = int(response.headers.get("Retry-After", 0))
            if response.status_code not in again or wait > longest or (number == tries - 1 and not last):
                return response
            sleep(wait)
        return response

    return ask


@pytest.mark.parametrize(
    "ask, verdict",
    [
        (client(), "Right."),
        (client(tries=3), "asks 3 times, 4 is right"),
        (client(tries=5), "asks 5 times, 4 is right"),
        (client(again=(503, 422)), "answer 422, 200: your client asks 2 times"),
        (client(longest=100), "a wait of 60 seconds"),
        (client(last=True), "after the last try"),
        (lambda send, sleep: client()(send, lambda wait: sleep(1)), "Retry-After says how long"),
        (lambda send, sleep: client()(send, sleep).status_code, "does not return the last response"),
    ],
)
def test_patient(ask, verdict, capsys):
    exercises.patient.check(ask)
    assert verdict in capsys.readouterr().out


def counter(after=lambda response: False, each=list):
    """A function that counts labels over a server, and stops when `after` a refusal."""

    def count(url, files):
        totals = {}
        for file in files:
            response = requests.post(f"{url}/detect", files={"file": file.read_bytes()}, timeout=30)
            if not response.ok and after(response):
                break
            for label in each(one["label"] for one in response.json().get("detections", [])):
                totals[label] = totals.get(label, 0) + 1
        return totals

    return count


@pytest.mark.parametrize(
    "count, verdict",
    [
        (counter(), "Right."),
        (counter(after=lambda response: True), "it stops at the file"),
        (counter(each=set), "count every object"),
        (lambda url, files: {}, "was counted as {}"),
        (lambda url, files: {"dog": files[9]}, "it raised IndexError"),
    ],
)
def test_tally(count, verdict, capsys):
    exercises.tally.check(count)
    assert verdict in capsys.readouterr().out


@pytest.mark.parametrize("name", exercises.__all__)
def test_a_question_explains_each_option(name):
    question = getattr(exercises, name)
    if isinstance(question, exercises.Question):
        assert all(option and explanation for option, explanation in question.options.values())
        assert len({explanation for _, explanation in question.options.values()}) == len(question.options)
