"""Simulate a small spoken-word recogniser. Voice activity detection finds the word in a clip, and the recogniser names it.

All clips are synthetic. A clip is drawn as a speech synthesiser of the 1980s would: harmonics of a voice shaped by the
resonances (formants) of a vowel, and noise for s and sh (source and filter: Fant, 1960; formants of men's vowels:
Peterson and Barney, 1952). So the spoken word is known. The microphone, the detection and the recogniser change when
the caller says so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from labsupport import arguments, charts
from labsupport.pipeline import Pipeline, Stage

if TYPE_CHECKING:
    from matplotlib.figure import Figure


RATE = 8_000  # samples per second, as on the telephone
SECONDS = 1.0  # of a clip
HOP, WINDOW = 80, 256  # samples: a look every 10 ms, at 32 ms
SOUNDS = {  # formants in Hz, or the band of the noise; loudness; seconds
    "ee": ((270, 2290, 3010), 1.0, 0.22),
    "ah": ((730, 1090, 2440), 1.0, 0.24),
    "aw": ((570, 840, 2410), 1.0, 0.24),
    "oo": ((300, 870, 2240), 1.0, 0.22),
    "m": ((250, 1000, 2200), 0.22, 0.10),
    "n": ((250, 1400, 2600), 0.22, 0.10),
    "s": ((3000, 3900), 0.06, 0.13),
    "sh": ((1800, 3000), 0.06, 0.13),
}
WORDS = {word: word_sounds for word, *word_sounds in [
    ("see", "s", "ee"), ("me", "m", "ee"), ("saw", "s", "aw"), ("gnaw", "n", "aw"), ("shoe", "sh", "oo"), ("ma", "m", "ah"),
]}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Clips:
    """N clips and their words. `sound` is (N, 8000): samples, 1 is as loud as a recording can get."""

    sound: np.ndarray
    words: np.ndarray


def clips(
    count: int, seed: int | Sequence[int], noise_db: float = -50.0, gain_db: float = 0.0, young: float = 0.0
) -> Clips:
    """Return `count` clips, each a word by another voice, at another time and distance, in another room.

    `noise_db` is the usual noise of the microphone, `gain_db` how much louder it records. `young` is the share of
    voices, 0 to 1, that are children's: twice as high, with formants a quarter higher (after Peterson and Barney). The
    same seed gives the same clips for any of these values except for what they change. Raises ValueError for an
    invalid number.

    >>> clips(3, seed=1).words.tolist(), clips(3, seed=1).sound.shape
    (['saw', 'gnaw', 'shoe'], (3, 8000))
    """
    count = arguments.number("count", count, 0, whole=True)
    noise_db = arguments.number("noise_db", noise_db, -200, 100)
    gain_db = arguments.number("gain_db", gain_db, -200, 100)
    young = arguments.number("young", young, 0, 1)
    random = np.random.default_rng(seed)
    words = random.choice(list(WORDS), count)
    children = np.random.default_rng([8, *np.atleast_1d(seed)]).random(count) < young
    voices = zip(words, random.spawn(count), children, strict=True)
    sound = np.array([_clip(word, voice, noise_db, child) for word, voice, child in voices])
    return Clips(np.clip(sound * 10 ** (gain_db / 20), -1, 1), words)


def _clip(word: str, random: np.random.Generator, noise_db: float, child: bool) -> np.ndarray:
    pitch, size = random.uniform(95, 220) * (2 if child else 1), random.uniform(0.9, 1.12) * (1.25 if child else 1)
    spoken = speak(word, pitch=pitch, size=size, pace=random.uniform(0.8, 1.25), seed=random)
    loudness = 10 ** (random.normal(-12, 3) / 20)
    sound = 10 ** (random.normal(noise_db, 4) / 20) * random.normal(size=int(RATE * SECONDS))
    start = random.integers(800, len(sound) - len(spoken) - 800)
    sound[start : start + len(spoken)] += loudness * spoken / np.abs(spoken).max()
    return sound


def speak(
    word: str,
    pitch: float = 120.0,
    size: float = 1.0,
    pace: float = 1.0,
    seed: int | Sequence[int] | np.random.Generator = 0,
) -> np.ndarray:
    """Return the sound of one word of `WORDS`, (N,), with the loudest sample near 1.

    `pitch` is the voice's in Hz. `size` scales the formants (a shorter throat has higher ones), `pace` the speed.

    >>> round(len(speak("see")) / RATE, 2)
    0.33
    """
    word = arguments.choice("word", word, WORDS)
    pitch, size = arguments.number("pitch", pitch, 40, 1_000), arguments.number("size", size, 0.5, 2)
    pace = arguments.number("pace", pace, 0.2, 5)
    random = np.random.default_rng(seed)
    parts = [_sound(name, pitch, size, pace * random.uniform(0.9, 1.1), random) for name in WORDS[word]]
    spoken = np.concatenate(parts)
    edge = int(0.02 * RATE)
    spoken[:edge] *= np.linspace(0, 1, edge)
    spoken[-4 * edge :] *= np.linspace(1, 0, 4 * edge)
    return spoken


def _sound(name: str, pitch: float, size: float, pace: float, random: np.random.Generator) -> np.ndarray:
    formants, loudness, seconds = SOUNDS[name]
    shape = np.array(formants) * size * random.uniform(0.95, 1.05, len(formants))
    time = np.arange(int(RATE * seconds / pace)) / RATE
    if len(shape) == 2:  # noise between two frequencies, of which some have to be below half the rate
        shape = np.minimum(shape, (0.45 * RATE, np.inf))
        spectrum = np.fft.rfft(random.normal(size=len(time)))
        frequency = np.fft.rfftfreq(len(time), 1 / RATE)
        sound = np.fft.irfft(spectrum * ((frequency > shape[0]) & (frequency < shape[1])), len(time))
        noise: np.ndarray = loudness * sound / float(sound.std())
        return noise
    harmonics = np.arange(1, int(3_800 / pitch) + 1)
    widths = np.array([60.0, 90.0, 150.0])
    strength = (widths**2 / ((harmonics[:, np.newaxis] * pitch - shape) ** 2 + widths**2) * [1, 0.5, 0.25]).sum(axis=1)
    turn = np.linspace(0, 2 * np.pi, 257)[:, np.newaxis]  # one vibration of the vocal cords
    vibration = np.sin(turn * harmonics + random.uniform(0, 2 * np.pi, len(harmonics))) @ strength
    phase = pitch * (time - random.uniform(0, 0.1) * time**2)  # the voice falls
    voice: np.ndarray = np.interp(phase % 1, turn[:, 0] / (2 * np.pi), vibration)
    spoken: np.ndarray = loudness * voice / float(voice.std()) / 3
    return spoken


def find_speech(sound: np.ndarray, margin_db: float = 6.0, lead: float = 0.05) -> np.ndarray | None:
    """Return the part of a clip that contains speech, (N,), by voice activity detection; None if there is none.

    Speech is sound that is louder than the clip's quietest tenth by `margin_db`, for 50 ms at least. `lead` seconds
    before it and twice as much after it are kept, so that soft beginnings and ends are not cut off.
    """
    level = levels(sound)
    loud = level > np.quantile(level, 0.1) + margin_db
    steady = np.flatnonzero(np.convolve(loud, np.ones(5), "valid") == 5)
    if not len(steady):
        return None
    start = int(steady[0] * HOP - lead * RATE)
    end = int((steady[-1] + 5) * HOP + 2 * lead * RATE)
    speech: np.ndarray = sound[max(0, start) : end]
    return speech


def levels(sound: np.ndarray) -> np.ndarray:
    """Return the loudness every 10 ms, in decibels: 0 is that of a sample of 1."""
    parts = sound[: len(sound) // HOP * HOP].reshape(-1, HOP)
    decibels: np.ndarray = 10 * np.log10((parts**2).mean(axis=1) + 1e-9)
    return decibels


def describe_clip(sound: np.ndarray) -> dict[str, float]:
    """Return the monitored measures of the microphone's sound: its quietest and its loudest tenth, in decibels."""
    quiet, loud = np.quantile(levels(sound), (0.1, 0.9))
    return {"noise_db": float(quiet), "loudness_db": float(loud)}


def describe_segment(sound: np.ndarray | None) -> dict[str, float]:
    """Return the monitored measures of a piece of speech: its length, its loudness in decibels, and its `embedding`.

    The recogniser uses only the embedding. Without it a word whose beginning is cut off would have the same measures as
    any other of that length, and the test would blame the recogniser for its lower confidence.
    """
    if sound is None:
        return {}
    numbers = {f"embedding_{place}": float(value) for place, value in enumerate(embedding(sound))}
    return {"seconds": len(sound) / RATE, "loudness_db": float(np.quantile(levels(sound), 0.9)), **numbers}


class Heard(NamedTuple):
    """The recogniser's answer: a word, and its confidence, 0 to 1."""

    word: str
    confidence: float


class Recogniser:
    """Recognises which of `WORDS` a piece of sound is: logistic regression on its `embedding`, learned from `examples`
    clips.
    """

    def __init__(self, examples: int, seed: int = 1) -> None:
        from sklearn.linear_model import LogisticRegression

        segments, words = _lesson(examples, seed)
        model = LogisticRegression(C=0.01, max_iter=500).fit(np.array([embedding(sound) for sound in segments]), words)
        self.words, self._weights, self._bias = model.classes_, model.coef_, model.intercept_

    def transcribe(self, sound: np.ndarray) -> Heard:
        """Return the word, and the confidence in it."""
        score = self._weights @ embedding(sound) + self._bias
        share = np.exp(score - score.max())
        best = int(share.argmax())
        return Heard(str(self.words[best]), float(share[best] / share.sum()))


def embedding(sound: np.ndarray) -> np.ndarray:
    """Return five numbers, (5,), that separate the words: discriminants of the sound's spectrum (Fisher, 1936).

    They are learned once from 600 drawn clips, and all versions of the recogniser use the same ones.
    """
    middle, directions = _discriminants()
    numbers: np.ndarray = (spectrum(sound) - middle) @ directions
    return numbers


@cache
def _discriminants() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    segments, words = _lesson(600, seed=0)
    model = LinearDiscriminantAnalysis(solver="eigen", shrinkage="auto")
    spectra = np.array([spectrum(sound) for sound in segments])
    model.fit(spectra, words)
    return spectra.mean(axis=0), model.scalings_[:, : len(WORDS) - 1]


def _lesson(examples: int, seed: int) -> tuple[list[np.ndarray], list[str]]:
    """Return the training data: pieces of sound, as `find_speech` cuts them, and their words."""
    lesson = clips(examples, seed=(7, seed))
    found = [(find_speech(sound), str(word)) for sound, word in zip(lesson.sound, lesson.words, strict=True)]
    segments, words = zip(*[(sound, word) for sound, word in found if sound is not None], strict=True)
    return list(segments), list(words)


def spectrum(sound: np.ndarray, times: int = 8) -> np.ndarray:
    """Return log energies in bands as wide as the ear's, at `times` times, (times * 14,), without the overall loudness."""
    sound = np.pad(sound, (0, max(0, WINDOW - len(sound))))
    starts = np.linspace(0, len(sound) - WINDOW, 3 * times).astype(int)
    parts = sound[starts[:, np.newaxis] + np.arange(WINDOW)] * np.hanning(WINDOW)
    energy = np.abs(np.fft.rfft(parts)) ** 2 @ _bands()
    energy = np.log(energy.reshape(times, 3, -1).mean(axis=1) + 1e-4)
    level: np.ndarray = (energy - energy.mean()).ravel()
    return level


@cache
def _bands(count: int = 14) -> np.ndarray:
    """Return triangles on the mel scale (Stevens, Volkmann and Newman, 1937), (WINDOW // 2 + 1, count)."""
    mel = np.linspace(2595 * np.log10(1 + 100 / 700), 2595 * np.log10(1 + RATE / 2 / 700), count + 2)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequency = np.fft.rfftfreq(WINDOW, 1 / RATE)[:, np.newaxis]
    up, down = (frequency - edges[:-2]) / np.diff(edges)[:-1], (edges[2:] - frequency) / np.diff(edges)[1:]
    return np.clip(np.minimum(up, down), 0, None)


@cache
def recogniser(version: str = "1") -> Recogniser:
    """Return version 1, or version 2, which learned from a twentieth of the examples. Trained on first use, in seconds."""
    return Recogniser(examples={"1": 600, "2": 30}[version])


def pipeline(version: str = "1", **vad: float) -> Pipeline:
    """Return the pipeline of two stages, "vad" and "recogniser"; `vad` are options of `find_speech`.

    >>> hear = pipeline()
    >>> lesson = clips(40, seed=3)
    >>> sum(hear.run(sound).word == word for sound, word in zip(lesson.sound, lesson.words))
    40
    """
    cut: Callable[..., np.ndarray | None] = find_speech
    steps = [
        Stage("vad", partial(cut, **vad), describe_segment),
        Stage("recogniser", recogniser(version).transcribe),
    ]
    return Pipeline(steps, describe_clip)


def draw(sound: np.ndarray, segments: dict[str, np.ndarray]) -> "Figure":
    """Draw the spectrogram of a clip once for each segment, by its title, with the segment in a white frame."""
    figure = charts.new_figure(4 * len(segments), 2.6)
    axes = np.atleast_1d(figure.subplots(1, len(segments), sharey=True))
    for axis, (title, segment) in zip(axes, segments.items(), strict=True):
        axis.specgram(sound + 1e-5, NFFT=WINDOW, Fs=RATE, noverlap=200, cmap="magma", vmin=-82, vmax=-45)
        start = np.flatnonzero(sound == segment[0])[0] / RATE
        axis.axvspan(start, start + len(segment) / RATE, fill=False, edgecolor="white", linewidth=2)
        axis.set(title=title, xlabel="time, s")
    axes[0].set_ylabel("frequency, Hz")
    return figure
