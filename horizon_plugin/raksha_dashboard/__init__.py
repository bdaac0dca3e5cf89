"""Raksha in Horizon: backup jobs, their runs and restores of a project, and what operators look at.

api/         what pages ask the service for, through `raksha.client`, and how its errors are shown
overview/    what is protected and what is not            jobs/     jobs: table, workflow, details
runs/        one run, and the restore from it             restores/ restores and how far they are
operators/   the panel of the admin dashboard             instances.py  the action "Protect" of Nova's table
words.py, schedules.py, charts.py   values for people; no requests in them
enabled/     what is copied to openstack_dashboard/local/enabled
"""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("raksha-dashboard")
except PackageNotFoundError:
    __version__ = "unknown"
