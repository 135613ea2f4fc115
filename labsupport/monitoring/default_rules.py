"""Define the default alarms of a new service. `learned` finds tighter limits from the service's own log."""

from labsupport.monitoring.alarms import AlertRule

DEFAULT_RULES = (
    # software: answers fail to come, or come late. In health one in a thousand fails, so one in twenty is no accident
    AlertRule(
        "ModelFails",
        "error_ratio",
        above=0.05,
        clear=0.02,
        severity="page",
        cure="See the log's columns error and version: if it is a new version that fails, roll back (PUT /rollout).",
    ),
    AlertRule(
        "Overloaded",
        "refused_ratio",
        above=0.05,
        clear=0.01,
        severity="page",
        cure="Add a machine, or shed load: the requests of one client may be most of them.",
    ),
    # the queue may take a second; who waits for two goes away
    AlertRule(
        "SlowAnswers",
        "latency_p95",
        above=1.0,
        clear=0.8,
        severity="page",
        cure="See whether other programs take the cores, whether pictures grew, and whether the version changed.",
    ),
    # input: the world or the cameras changed. Answers get worse, but nobody is turned away
    AlertRule(
        "UndecodableFiles",
        "undecodable_ratio",
        above=0.1,
        clear=0.05,
        cure="Find out who sends them: an app that now saves HEIC or WebP, or a proxy that cuts uploads short.",
    ),
    # streets by day have a brightness of 0.3 to 0.6
    AlertRule(
        "Dark",
        "brightness_mean",
        below=0.2,
        clear=0.25,
        cure="Look at some of the pictures: is a lamp out, a lens covered, or is it night?",
    ),
    # output: the model says what it did not use to say. Some pictures are empty, most of them should not be
    AlertRule(
        "NothingFound",
        "empty_ratio",
        above=0.5,
        clear=0.4,
        cure="Compare the versions in the log: if it is the new one only, roll back; if not, look at the pictures.",
    ),
    AlertRule(
        "TooManyFound",
        "detections_mean",
        above=15.0,
        clear=10.0,
        cure="See whether overlapping boxes are still thinned out, and whether clients ask for a very low confidence.",
    ),
    # what is reported has a confidence of 0.5 or more: with a mean of 0.6 most of it is hardly above that
    AlertRule(
        "UnsureAnswers",
        "confidence_mean",
        below=0.6,
        clear=0.65,
        cure="Look at the pictures: what is new about them? Label some, and retrain.",
    ),
    # users: only some of them say so, and they say it later. Hence the longer window
    AlertRule(
        "UsersCorrect",
        "wrong_ratio",
        above=0.05,
        clear=0.03,
        window=600.0,
        severity="page",
        cure="Read the corrections (column labels): is one class taken for another? Roll back, or retrain on them.",
    ),
    AlertRule(
        "UsersRetry",
        "retry_ratio",
        above=0.05,
        clear=0.03,
        window=600.0,
        cure="Send some of their pictures again: does a second try help, and why?",
    ),
    # drift: by chance a p-value below 1e-5 comes once in half a year, looked at every half window (if rows are independent)
    AlertRule(
        "Drift",
        "drift",
        below=1e-5,
        clear=1e-3,
        min_rows=100,
        cure="Plot drift.compare(reference, current): is it the world that changed, or a camera?",
    ),
)
