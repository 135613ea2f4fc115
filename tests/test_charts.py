"""The slider of the lessons; what else charts draw is looked at where it is used."""

import IPython.display
import pytest

from labsupport import charts


def bar(height: float):
    figure = charts.new_figure(1, 1)
    figure.add_subplot().bar([0], [height])
    return figure


def test_a_slider_draws_the_figure_of_its_position(monkeypatch):
    shown = []
    monkeypatch.setattr(IPython.display, "display", shown.append)
    charts.slider(bar, "height", [0.2, 0.5, 0.8], start=0.5)
    slider, picture = shown[0].children
    assert slider.description == "height" and slider.value == 0.5
    assert picture.value == bar(0.5)._repr_png_() != bar(0.8)._repr_png_()
    slider.value = 0.8
    assert picture.value == bar(0.8)._repr_png_()


def test_a_slider_starts_at_one_of_its_positions():
    with pytest.raises(ValueError, match=r"start=0.3: give one of the positions 0.2, 0.5"):
        charts.slider(bar, "height", [0.2, 0.5], start=0.3)
