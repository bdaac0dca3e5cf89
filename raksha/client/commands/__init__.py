"""The command classes of both front doors, by the words that they answer to. Nothing is imported before it is run."""

from __future__ import annotations

from collections.abc import Mapping

_BY_MODULE = {
    "job": {
        "job list": "ListJobs",
        "job show": "ShowJob",
        "job create": "CreateJob",
        "job set": "SetJob",
        "job delete": "DeleteJob",
        "job pause": "PauseJob",
        "job resume": "ResumeJob",
        "job take-over": "TakeOverJob",
        "job retention-preview": "RetentionPreview",
    },
    "run": {
        "job run": "RunJob",
        "run list": "ListRuns",
        "run show": "ShowRun",
        "run set": "SetRun",
        "run watch": "WatchRun",
        "run cancel": "CancelRun",
        "run delete": "DeleteRun",
    },
    "restore": {
        "run restore-plan": "RestorePlanOfRun",
        "restore create": "CreateRestore",
        "restore list": "ListRestores",
        "restore show": "ShowRestore",
        "restore watch": "WatchRestore",
        "restore cancel": "CancelRestore",
    },
    "verification": {
        "verification create": "CreateVerification",
        "verification list": "ListVerifications",
        "verification show": "ShowVerification",
        "verification watch": "WatchVerification",
        "verification cancel": "CancelVerification",
    },
    "others": {
        "vm list": "ListVms",
        "vm show": "ShowVm",
        "vault list": "ListVaults",
        "service list": "ListServices",
        "service set": "SetService",
        "usage show": "ShowUsage",
        "limits show": "ShowLimits",
        "schedule preview": "PreviewSchedule",
    },
}

#: `job list`: module and class, as entry points have them
COMMANDS: Mapping[str, str] = {
    words: f"raksha.client.commands.{module}:{name}"
    for module, found in _BY_MODULE.items()
    for words, name in found.items()
}
