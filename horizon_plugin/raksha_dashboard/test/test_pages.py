"""Each page, rendered by Horizon, over answers of the API; and what it asks of the API."""

from __future__ import annotations

from typing import Any
from unittest import mock

from django.conf import settings
from django.urls import reverse
from keystoneauth1 import exceptions as keystone_errors
from openstack_dashboard import api

from raksha_dashboard.test.helpers import (
    JOB,
    RESTORE,
    RUN,
    VERIFICATION,
    VM,
    TestCase,
    job,
    restore,
    run,
    verification,
    vm,
    vm_of_run,
)

INDEX = reverse("horizon:project:backup_jobs:index")
DETAIL = reverse("horizon:project:backup_jobs:detail", args=(JOB,))
RUN_PAGE = reverse("horizon:project:backup_jobs:run", args=(JOB, RUN))
RUN_API = f"/backupjobs/{JOB}/backupjobruns/{RUN}"


class Jobs(TestCase):
    def test_the_table_has_what_runs_say(self) -> None:
        self.jobs(run(), run(id=RUN.replace("3", "5"), state="error", bytes_stored=0))
        page = self.client.get(INDEX)
        self.assertEqual(200, page.status_code)
        (shown,) = page.context["table"].data
        self.assertEqual(("web",), shown.vm_names)
        self.assertEqual(1, len(shown.points))
        self.assertContains(page, "Every day at 22:30 (UTC)")
        self.assertContains(page, "5.0")
        self.assertContains(page, "Run Now")
        self.assertContains(page, "Last proven restorable")

    def test_a_row_under_way_is_asked_for_again(self) -> None:
        self.jobs(run(state="running", finished_at=None, progress={"percent": 42}))
        row = self.client.get(
            f"{INDEX}?action=row_update&table=jobs&obj_id={JOB}", HTTP_X_REQUESTED_WITH="XMLHttpRequest"
        )
        self.assertContains(row, "42%")
        self.assertContains(row, "ajax-update")
        self.assertContains(row, "warning")

    def test_a_job_that_is_gone_leaves_the_table(self) -> None:
        self.answers(f"/backupjobs/{JOB}", status=404, errors=[{"code": "data-protection.not_found", "detail": "gone"}])
        row = self.client.get(
            f"{INDEX}?action=row_update&table=jobs&obj_id={JOB}", HTTP_X_REQUESTED_WITH="XMLHttpRequest"
        )
        self.assertEqual(404, row.status_code)

    def test_running_it_posts_a_run(self) -> None:
        self.jobs(run())
        asked = self.answers(f"/backupjobs/{JOB}/backupjobruns", "POST", 202, **run(state="queued"))
        answer = self.client.post(INDEX, {"action": f"jobs__run__{JOB}"})
        self.assertRedirectsNoFollow(answer, INDEX)
        self.assertEqual(1, asked.call_count)

    def test_a_refusal_is_shown_with_its_request_id(self) -> None:
        self.jobs(run())
        self.refuses(f"/backupjobs/{JOB}", "DELETE")
        page = self.client.post(INDEX, {"action": f"jobs__delete__{JOB}"}, follow=True)
        self.assertIn("It is protected", self.messages(page))
        self.assertIn("req-refused", self.messages(page))

    def test_a_dead_api_leaves_an_empty_page_with_a_message(self) -> None:
        import requests

        self.api.register_uri("GET", f"{self.base}/backupjobs", exc=requests.exceptions.ConnectionError("refused"))
        page = self.client.get(INDEX)
        self.assertEqual(200, page.status_code)
        self.assertIn("could not be read", self.messages(page))

    def test_detail_has_chart_chain_and_settings(self) -> None:
        self.jobs(run(id=RUN.replace("3", "6"), kind="incremental", protected=True), run())
        page = self.client.get(DETAIL)
        self.assertContains(page, 'class="raksha-full raksha-point-good"')
        self.assertContains(page, 'class="raksha-incremental raksha-point-good"')
        self.assertContains(page, "raksha-protected")
        self.assertContains(page, "9.0\xa0MB sent, 5.0\xa0MB stored")
        self.assertContains(page, "without vdb")
        runs = self.client.get(f"{DETAIL}?tab=job__runs", HTTP_X_REQUESTED_WITH="XMLHttpRequest")
        self.assertContains(runs, "Application: file systems were frozen")


FORM = {"name": "new", "vms": [VM], "excluded": [f"{VM}/vdb"], "often": "weekly", "weekday": "5", "at": "02:30",
            "zone": "Europe/Paris", "full": "runs", "full_every": "7", "keep": "some", "daily": "7", "weekly": "4",
            "quiesce": "require", "consistency_group": "on", "on_vm_failure": "degrade"}  # fmt: skip


class Create(TestCase):
    url = reverse("horizon:project:backup_jobs:create")

    def test_the_vm_of_the_link_is_chosen(self) -> None:
        self.answers("/vms", vms=[vm()])
        page = self.client.get(f"{self.url}?vm={VM}&name=web")
        self.assertContains(page, f'value="{VM}" checked')
        self.assertContains(page, f'value="{VM}/vdb"')

    def test_it_posts_what_was_chosen(self) -> None:
        self.jobs()
        self.answers("/schedule-preview", "POST", in_words="", fire_times=[])
        asked = self.answers("/backupjobs", "POST", 201, **job())
        answer = self.client.post(self.url, FORM)
        self.assertRedirectsNoFollow(answer, INDEX)
        self.assertEqual(
            {
                "name": "new", "description": "", "vms": [{"id": VM, "excluded_disks": ["vdb"]}],
                "schedule": {"cron": "30 2 * * 5", "zone": "Europe/Paris", "full_every": 7},
                "retention": {"daily": 7, "weekly": 4, "zone": "Europe/Paris"}, "quiesce": "require",
                "consistency_group": True, "on_vm_failure": "degrade",
            },
            asked.last_request.json(),
        )  # fmt: skip

    def test_what_the_api_refuses_keeps_the_form(self) -> None:
        self.jobs()
        self.answers("/schedule-preview", "POST", in_words="", fire_times=[])
        self.refuses("/backupjobs", "POST", 403, "limit_exceeded")
        page = self.client.post(self.url, FORM)
        self.assertContains(page, "req-refused")
        self.assertContains(page, 'value="new"')

    def test_a_schedule_that_is_none_stays_at_its_step(self) -> None:
        self.jobs()
        self.refuses("/schedule-preview", "POST", 400, "invalid")
        asked = self.answers("/backupjobs", "POST", 201, **job())
        page = self.client.post(self.url, {**FORM, "often": "cron", "cron": "99 * * * *"})
        self.assertContains(page, "req-refused")
        self.assertEqual(0, asked.call_count)

    def test_a_change_goes_out_with_the_etag_and_keeps_what_the_form_has_not(self) -> None:
        self.jobs(schedule={"cron": "30 22 * * *", "zone": "UTC", "window": "20:00-06:00", "full_cron": "0 1 * * 0"})
        self.answers("/schedule-preview", "POST", in_words="", fire_times=[])
        asked = self.answers(f"/backupjobs/{JOB}", "PUT", **job())
        url = reverse("horizon:project:backup_jobs:update", args=(JOB,))
        page = self.client.get(url)
        self.assertContains(page, 'value="22:30"')
        self.client.post(url, {**FORM, "job_id": JOB, "etag": '"7"', "often": "hours", "hours": "6"})
        self.assertEqual('"7"', asked.last_request.headers["If-Match"])
        sent = asked.last_request.json()
        self.assertEqual(21600, sent["schedule"]["every"])
        self.assertEqual("20:00-06:00", sent["schedule"]["window"])
        self.assertNotIn("cron", sent["schedule"])

    def test_previews(self) -> None:
        times = [{"scheduled_at": f"2026-11-2{day}T02:30:00Z", "full": day == 3} for day in (3, 4)]
        self.answers("/schedule-preview", "POST", in_words="", fire_times=times)
        shown = self.client.get(reverse("horizon:project:backup_jobs:schedule_preview"), FORM)
        self.assertContains(shown, "2026-11-23 02:30")
        decisions = [{"backupjobrun_id": RUN, "taken_at": "2026-11-20T00:00:00Z", "kept": False, "reasons": ["old"]}]
        self.answers(f"/backupjobs/{JOB}/retention-preview", "POST", kept=0, deleted=1, decisions=decisions)
        url = reverse("horizon:project:backup_jobs:retention_preview")
        self.assertContains(self.client.get(url, {**FORM, "job_id": JOB}), "raksha-goes")
        self.assertContains(self.client.get(url, FORM), "7 daily, 4 weekly")


class Runs(TestCase):
    def test_page(self) -> None:
        self.jobs(run())
        page = self.client.get(RUN_PAGE)
        self.assertContains(page, "First copy of this disk")
        self.assertContains(page, "Ended: Available")
        self.assertNotContains(page, "data-raksha-live=")

    def test_what_test_restores_showed(self) -> None:
        at = "2026-11-23T03:04:05+00:00"
        proven = vm_of_run(proven_restorable_at=at, proven_by="marker")
        reason = {"code": "no_agent", "message": "its guest agent was silent"}
        vms = [proven, vm_of_run(unproven_at=at, unproven_reason=reason)]
        self.jobs(run())
        self.answers(RUN_API, **run(proven_restorable_at=at, vms=vms))
        page = self.client.get(RUN_PAGE)
        self.assertContains(page, "web: came up in a test restore")
        self.assertContains(page, "its guest agent was silent")
        self.assertContains(page, '<b class="raksha-small">2026-11-23 03:04')

    def test_one_under_way_is_asked_for_again(self) -> None:
        self.jobs(run(state="running", finished_at=None))
        self.assertContains(self.client.get(RUN_PAGE), "data-raksha-live=")
        live = self.client.get(reverse("horizon:project:backup_jobs:run_live", args=(JOB, RUN)))
        self.assertNotContains(live, "data-raksha-ended")

    def test_protecting(self) -> None:
        self.jobs(run())
        asked = self.answers(RUN_API, "PUT", **run())
        self.client.post(f"{DETAIL}?tab=job__runs", {"action": f"runs__protect__{RUN}"})
        self.assertEqual({"protected": True}, asked.last_request.json())

    def test_restoring_one_disk_to_a_new_server(self) -> None:
        self.jobs(run())
        asked = self.answers(RUN_API, "POST", 202, **restore(state="queued"))
        url = reverse("horizon:project:backup_jobs:restore", args=(JOB, RUN))
        with (
            mock.patch.object(api.nova, "flavor_list", return_value=self.flavors.list()),
            mock.patch.object(api.nova, "keypair_list", return_value=self.keypairs.list()),
            mock.patch.object(api.neutron, "network_list_for_tenant", return_value=self.networks.list()),
            mock.patch.object(api.cinder, "volume_type_list", return_value=[]),
        ):
            page = self.client.get(url)
            self.assertContains(page, "As it was (m1.small)")
            self.assertContains(page, "As it was (mine)")
            self.assertContains(page, "web-restored")
            network = self.networks.first().id
            form = {"job_id": JOB, "run_id": RUN, "disks": [f"{VM}/vda"], f"name_{VM}": "again", "kind": "server",
                    "networks": [network], "key_name": "-", "start": "on"}  # fmt: skip
            answer = self.client.post(url, form)
        self.assertRedirectsNoFollow(answer, reverse("horizon:project:protection_restores:index"))
        target = {"kind": "server", "start": True, "key_name": "", "networks": [{"network_id": network}]}
        self.assertEqual({"target": target, "vms": [{"id": VM, "name": "again"}]}, asked.last_request.json())

    def test_restoring_into_another_project(self) -> None:
        self.jobs(run())
        asked = self.answers(RUN_API, "POST", 202, **restore(state="queued"))
        url = reverse("horizon:project:backup_jobs:restore", args=(JOB, RUN))
        other = next(each for each in self.tenants.list() if each.id != self.tenant.id)
        form = {"job_id": JOB, "run_id": RUN, "disks": [f"{VM}/vda"], "kind": "image", "project": other.id}
        with (
            mock.patch.object(api.nova, "flavor_list", return_value=[]),
            mock.patch.object(api.nova, "keypair_list", return_value=[]),
            mock.patch.object(api.neutron, "network_list_for_tenant", return_value=[]),
            mock.patch.object(api.cinder, "volume_type_list", return_value=[]),
            mock.patch("openstack_auth.utils.get_token_auth_plugin") as login,
        ):
            self.assertContains(self.client.get(url), other.name)
            login.return_value.get_token.return_value = "of the other project"
            self.client.post(url, form)
            self.assertEqual({"kind": "image", "project": other.id}, asked.last_request.json()["target"])
            self.assertEqual("of the other project", asked.last_request.headers["X-Raksha-Target-Token"])
            self.assertEqual(other.id, login.call_args.kwargs["project_id"])
            login.return_value.get_token.side_effect = keystone_errors.Forbidden
            page = self.client.post(url, form)
        self.assertContains(page, "Keystone gave no token for the other project")
        self.assertEqual(1, asked.call_count)


class Verifications(TestCase):
    url = f"{DETAIL}?tab=job__verifications"

    def shown(self, *rows: dict[str, Any]) -> Any:
        self.jobs(run(verified_at="2026-11-23T03:04:05+00:00"))
        self.answers("/verifications", verifications=list(rows))
        return self.client.get(self.url, HTTP_X_REQUESTED_WITH="XMLHttpRequest")

    def test_what_was_found_is_said(self) -> None:
        finding = {
            "object": "backupjobs_segments/36/x",
            "code": "object_corrupt",
            "detail": "it is not what was stored",
        }
        page = self.shown(
            verification(findings=[finding], healed=["y"], backupjobrun_id=RUN),
            verification(id=VM, percent=15),
            verification(id=RESTORE, state="running", progress={"percent": 42}, data=False),
        )
        self.assertContains(
            page, "1 damaged object; backupjobs_segments/36/x: it is not what was stored; 1 object healed"
        )
        self.assertContains(page, RUN_PAGE)
        self.assertContains(page, "15% of the data")
        self.assertContains(page, "Nothing is damaged")
        self.assertContains(page, "Whether all is there")
        self.assertContains(page, "42%")

    def test_what_came_of_a_test_restore(self) -> None:
        silent = {"id": VM, "name": "db", "outcome": "failed", "reason": {"code": "no_agent", "message": "silent"}}
        vms = [{"id": VM, "name": "web", "outcome": "proven"}, silent]
        self.assertContains(self.shown(verification(boot=True, vms=vms)), "web: came up; db: silent")
        failed = verification(state="error", error={"code": "not_claimed", "message": "no agent took it in time"})
        self.assertContains(self.shown(failed), "no agent took it in time")

    def test_asking_for_one(self) -> None:
        self.jobs(run())
        of_run = self.answers(f"{RUN_API}/verify", "POST", 202, **verification(state="queued"))
        self.client.post(f"{DETAIL}?tab=job__runs", {"action": f"runs__verify__{RUN}"})
        self.assertEqual({"data": True, "percent": 100}, of_run.last_request.json())
        self.client.post(f"{DETAIL}?tab=job__runs", {"action": f"runs__test_restore__{RUN}"})
        self.assertEqual({"boot": True}, of_run.last_request.json())
        of_job = self.answers(f"/backupjobs/{JOB}/verify", "POST", 202, **verification(state="queued"))
        self.client.post(INDEX, {"action": f"jobs__verify__{JOB}"})
        self.assertEqual({"data": True, "percent": 100}, of_job.last_request.json())
        self.client.post(INDEX, {"action": f"jobs__test_restore__{JOB}"})
        self.assertEqual({"boot": True}, of_job.last_request.json())

    def test_cancelling_one(self) -> None:
        self.shown(verification(state="running"))
        self.answers(f"/verifications/{VERIFICATION}", **verification(state="running"))
        asked = self.answers(f"/verifications/{VERIFICATION}/cancel", "POST", 202, **verification(state="running"))
        self.client.post(self.url, {"action": f"verifications__cancel__{VERIFICATION}"})
        self.assertEqual(1, asked.call_count)

    def test_runs_say_when_they_were_verified(self) -> None:
        self.shown()
        runs = self.client.get(f"{DETAIL}?tab=job__runs", HTTP_X_REQUESTED_WITH="XMLHttpRequest")
        self.assertContains(runs, "2026-11-23 03:04")
        self.assertContains(self.client.get(RUN_PAGE), '<b class="raksha-small">2026-11-23 03:04')


class InGerman(TestCase):
    def setUp(self) -> None:
        super().setUp()
        self.client.cookies[settings.LANGUAGE_COOKIE_NAME] = "de"

    def test_jobs_and_runs(self) -> None:
        self.jobs(run())
        page = self.client.get(INDEX)
        for words in ("Sicherungsaufträge", "Jeden Tag um 22:30 (UTC)", "Jetzt sichern", "Zuletzt belegt"):
            self.assertContains(page, words)
        page = self.client.get(RUN_PAGE)
        for words in ("Erste Kopie dieser Platte", "Beendet: Verfügbar", "web: Schnappschuss gemacht"):
            self.assertContains(page, words)


class Others(TestCase):
    def test_restores(self) -> None:
        self.answers("/restores", restores=[restore(), restore(id=RUN, state="running", result=None)])
        self.assertContains(self.client.get(reverse("horizon:project:protection_restores:index")), "New server")
        self.answers(f"/restores/{RESTORE}", **restore())
        page = self.client.get(reverse("horizon:project:protection_restores:detail", args=(RESTORE,)))
        self.assertContains(page, f"/project/instances/{VM}/")

    def test_overview_says_what_is_not_protected_first(self) -> None:
        other = VM.replace("1", "9")
        self.jobs(run())
        self.answers("/vms", vms=[vm(), vm(id=other, name="zoo")])
        self.answers("/usage", usage={"jobs": 1, "stored_bytes": 1 << 30})
        self.answers("/limits", limits={"max_jobs": 4, "max_stored_bytes": -1})
        page = self.client.get(reverse("horizon:project:protection_overview:index"))
        self.assertEqual([other, VM], [row.id for row in page.context["table"].data])
        self.assertEqual((1, 1), (page.context["good"], page.context["bad"]))
        self.assertContains(page, 'aria-valuenow="25"')

    def test_the_catalogue_decides_whether_instances_can_be_protected(self) -> None:
        from openstack_dashboard.dashboards.project.instances.tables import InstancesTable

        action = InstancesTable.base_actions["raksha_protect"]
        self.assertTrue(action.allowed(self.request))
        self.assertIn(f"vm={VM}", action.get_link_url(mock.Mock(id=VM, **{"name": "web"})))
        self.setActiveUser(id="1", token=self.token, tenant_id=self.tenant.id, service_catalog=[])
        from openstack_auth import utils

        self.assertFalse(action.allowed(mock.Mock(user=utils.get_user(self.request))))

    def test_a_vm_is_called_what_its_cloud_calls_it(self) -> None:
        self.jobs(run())
        self.assertContains(self.client.get(RUN_PAGE), "web")
        self.assertNotContains(self.client.get(RUN_PAGE), vm_of_run()["name"])
