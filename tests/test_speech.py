"""Are the drawn words words, does the detection find them, and does the recogniser tell them apart?"""

import numpy as np
import pytest

from labsupport.scenarios import speech


def peaks(sound):
    """Where the spectrum of a steady sound has its energy, in Hz."""
    power = np.abs(np.fft.rfft(sound * np.hanning(len(sound)))) ** 2
    return np.fft.rfftfreq(len(sound), 1 / speech.RATE), power / power.sum()


@pytest.mark.parametrize(("word", "first"), [("see", 270), ("saw", 570), ("shoe", 300), ("ma", 730)])
def test_vowels_are_loudest_near_their_first_formant(word, first):
    spoken = speech.speak(word, pitch=100.0)
    frequency, power = peaks(spoken[len(spoken) // 2 : len(spoken) // 2 + 1_000])
    assert power[np.abs(frequency - first) < 200].sum() > 0.5


def test_s_hisses_and_m_hums():
    for word, share in (("see", 0.95), ("me", 0.05)):
        frequency, power = peaks(speech.speak(word)[200:700])
        assert power[frequency > 2_000].sum() == pytest.approx(share, abs=0.06)


def test_a_higher_voice_has_its_harmonics_further_apart():
    for pitch in (100.0, 200.0):
        spoken = speech.speak("ma", pitch=pitch)[-1_600:-800]
        likeness = np.correlate(spoken, spoken, "full")[len(spoken) - 1 :]
        period = 25 + (likeness[25:120] > 0.85 * likeness[25:120].max()).argmax()  # the first one of its multiples
        period = period - 5 + likeness[period - 5 : period + 10].argmax()
        assert speech.RATE / period == pytest.approx(pitch, rel=0.06)


def test_the_detection_finds_the_word_and_nothing_in_silence():
    random = np.random.default_rng(0)
    sound = 0.001 * random.normal(size=8_000)
    assert speech.find_speech(sound) is None
    spoken = speech.speak("ma")
    sound[3_000 : 3_000 + len(spoken)] += 0.3 * spoken / np.abs(spoken).max()
    found = speech.find_speech(sound)
    start = np.flatnonzero(sound == found[0])[0]
    assert 2_500 <= start <= 2_800  # 50 ms before the word, and it is loud at once
    assert len(spoken) < len(found) < len(spoken) + 0.22 * speech.RATE
    assert speech.describe_segment(None) == {}


def test_a_stricter_detection_cuts_soft_beginnings_off():
    sounds = speech.clips(60, seed=4)
    soft = np.isin(sounds.words, ["see", "saw", "shoe"])
    lengths = [
        np.array([len(speech.find_speech(sound, margin, lead)) for sound in sounds.sound])
        for margin, lead in ((6, 0.05), (14, 0.03))
    ]
    lost = lengths[0] - lengths[1] - 3 * 0.02 * speech.RATE  # beside what `lead` keeps less
    assert np.median(lost[soft]) > 200
    assert np.median(lost[soft]) > 2 * np.median(lost[~soft])


@pytest.mark.parametrize(
    ("version", "options", "accuracy", "confidence"),
    [
        ("1", {}, (0.97, 1.0), (0.93, 0.99)),
        ("1", {"margin_db": 14.0, "lead": 0.03}, (0.8, 0.96), (0.87, 0.94)),
        ("2", {}, (0.9, 1.0), (0.6, 0.8)),
    ],
)
def test_how_often_the_recogniser_is_right(version, options, accuracy, confidence):
    pipeline, exam = speech.pipeline(version, **options), speech.clips(300, seed=6)
    heard = [pipeline.run(sound) for sound in exam.sound]
    right = np.mean(
        [answer is not None and answer.word == word for answer, word in zip(heard, exam.words, strict=True)]
    )
    assert accuracy[0] <= right <= accuracy[1]
    assert confidence[0] <= np.mean([answer.confidence for answer in heard if answer]) <= confidence[1]


def test_the_same_seed_gives_the_same_voices_to_every_microphone():
    same, again, louder = (speech.clips(4, 5, gain_db=gain) for gain in (-12, -12, -6))
    np.testing.assert_array_equal(same.sound, again.sound)
    np.testing.assert_allclose(louder.sound, same.sound * 10 ** (6 / 20), rtol=1e-6)
    assert np.abs(speech.clips(20, 5, gain_db=30).sound).max() == 1


def test_children_speak_higher_and_the_others_are_as_they_were():
    adults, mixed = speech.clips(40, seed=6), speech.clips(40, seed=6, young=0.4)
    same = (adults.sound == mixed.sound).all(axis=1)
    assert 5 < (~same).sum() < 30
    assert (adults.words == mixed.words).all()
    assert np.isfinite(speech.clips(60, seed=7, young=1.0).sound).all()


def test_a_spectrogram_has_a_frame_for_each_segment():
    sound = speech.clips(1, seed=1).sound[0]
    figure = speech.draw(sound, {"before": speech.find_speech(sound), "now": speech.find_speech(sound, 14, 0.03)})
    assert [axis.get_title() for axis in figure.axes] == ["before", "now"]
    assert all(axis.patches for axis in figure.axes)
