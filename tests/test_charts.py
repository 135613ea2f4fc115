"""The slider of the lessons; what else charts draw is looked at where it is used."""

import base64

import IPython.display
import ipywidgets
import pytest
from ipywidgets import VBox

from labsupport import charts


def bar(height: float):
    figure = charts.new_figure(1, 1)
    figure.add_subplot().bar([0], [height])
    return figure


def test_a_slider_draws_the_figure_of_its_position(monkeypatch):
    shown, how, made = {}, {}, []
    monkeypatch.setattr(IPython.display, "display", lambda data, **options: (shown.update(data), how.update(options)))
    monkeypatch.setattr(ipywidgets, "VBox", lambda children, **look: made.extend(children) or VBox(children, **look))
    charts.slider(bar, "height", [0.2, 0.5, 0.8], start=0.5, alt="a bar of one half")
    slider, picture = made
    assert slider.description == "height" and slider.value == 0.5
    assert picture.value == bar(0.5)._repr_png_() != bar(0.8)._repr_png_()
    slider.value = 0.8
    assert picture.value == bar(0.8)._repr_png_()
    assert base64.b64decode(shown["image/png"]) == bar(0.5)._repr_png_()  # for a page without a kernel
    assert shown["text/plain"] == "a bar of one half"
    assert how == {"raw": True, "metadata": {"image/png": {"alt": "a bar of one half"}}}
    assert "application/vnd.jupyter.widget-view+json" in shown


@pytest.mark.parametrize(
    "start, alt, message", [(0.3, "a bar", "start=0.3: give one of the positions 0.2, 0.5"), (0.2, "", "alt")]
)
def test_a_slider_starts_at_one_of_its_positions_and_has_words(start, alt, message):
    with pytest.raises(ValueError, match=message):
        charts.slider(bar, "height", [0.2, 0.5], start, alt)
