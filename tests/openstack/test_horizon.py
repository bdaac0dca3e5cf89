"""Horizon with the plugin, looked at by a browser, with the real API, scheduler and agent behind it.

RAKSHA_PICTURES=docs/images: keeps the pictures that the docs show.
"""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.bed.swift import free_ports
from tests.openstack.browser import Looks, browser
from tests.openstack.cloud import horizon
from tests.openstack.cloud.layout import REGION, REPOSITORY
from tests.openstack.cloud.rest import Cloud
from tests.openstack.conftest import tenant
from tests.openstack.guest import Guest
from tests.openstack.service import Service, answers

_NAME = "horizon-tested"


@pytest.fixture(scope="module")
def url(raksha: Service, admin: Cloud) -> Iterator[str]:
    """Of a Horizon that finds the deployment in the cloud's catalogue, as any Horizon does."""
    subprocess.run([REPOSITORY / "scripts/setup-horizon"], check=True)
    keystone = admin.keystone
    service = keystone.post("/services", {"service": {"type": "data-protection", "name": "raksha"}})["service"]["id"]
    try:
        for interface in ("public", "internal"):
            address = f"{raksha.url}/v1/%(project_id)s"
            endpoint = {"service_id": service, "interface": interface, "url": address, "region_id": REGION}
            keystone.post("/endpoints", {"endpoint": endpoint})
        (port,) = free_ports(1)
        horizon.up(_NAME, port)
        yield f"http://127.0.0.1:{port}"
    finally:
        horizon.down(_NAME)
        keystone.delete(f"/services/{service}")


@pytest.fixture(scope="module")
def shop(admin: Cloud) -> Iterator[Cloud]:
    """A tenant with a web server and its database."""
    with tenant(admin, "shop") as made:
        made.server("web")
        made.server("database")
        for server in made.nova.get("/servers")["servers"]:
            guest = Guest(admin, server["id"])
            guest.wait_until_ready()
            guest.close()
        yield made
        for server in made.nova.get("/servers")["servers"]:
            made.delete_server(server["id"])
        for image in made.glance.get("/images?visibility=private")["images"]:
            made.glance.delete(f"/images/{image['id']}")


def _row(looks: Looks, table: str, text: str) -> Any:
    return looks.page.locator(f"#{table} tbody tr", has_text=text).first


def _says(looks: Looks, table: str, text: str, wanted: str) -> bool:
    return wanted in _row(looks, table, text).inner_text()


def _until(looks: Looks, row: Any, *words: str, seconds: int = 180) -> str:
    """Until the row says so by itself: nothing loads the page anew."""
    for _ in range(seconds * 2):
        said = str(row.inner_text())
        if any(word in said for word in words):
            return said
        looks.page.wait_for_timeout(500)
    raise AssertionError(row.inner_text())


def test_a_tenant_protects_servers_and_gets_one_back(url: str, raksha: Service, shop: Cloud) -> None:
    for server in shop.nova.get("/servers")["servers"]:
        raksha.sees(shop, server["id"])
    with browser(url) as looks:
        page = looks.page
        looks.log_in(shop.name)

        # nothing is protected yet; Nova's table has the way to it, with that server chosen
        looks.go("/project/protection_overview/")
        assert page.locator("#vms tbody tr", has_text="Not protected").count() == 2
        looks.go("/project/instances/")
        row = _row(looks, "instances", "web")
        row.locator(".dropdown-toggle").click()
        row.get_by_text("Protect", exact=True).click()
        page.wait_for_selector(".modal .raksha-choices")
        assert page.locator(".modal input[name=vms]:checked").count() == 1
        page.fill(".modal [name=name]", "nightly")
        for box in page.locator(".modal input[name=vms]").all():
            box.check()
        looks.accessible(".modal")
        page.click(".modal .nav-pills >> text=When")
        page.wait_for_selector(".modal .raksha-times li")
        assert page.locator(".modal .raksha-times li").count() == 5
        page.select_option(".modal [name=often]", "cron")
        page.fill(".modal [name=cron]", "99 * * * *")
        page.wait_for_selector(".modal [data-raksha-preview] .raksha-problem")
        page.select_option(".modal [name=often]", "weekdays")
        page.wait_for_selector(".modal .raksha-times li")
        looks.accessible(".modal")
        looks.picture("horizon-when")
        page.click(".modal .nav-pills >> text=How long")
        page.wait_for_selector(".modal [data-raksha-preview] >> text=7 daily, 4 weekly")
        looks.accessible(".modal")
        page.click(".modal .nav-pills >> text=Consistency")
        looks.accessible(".modal")
        page.click(".modal input[type=submit]")
        page.wait_for_selector("#jobs tbody tr:has-text('nightly')")
        assert any("Created backup job" in each for each in looks.alerts())
        (job,) = raksha.of(shop).get("/backupjobs")["backupjobs"]
        assert job["schedule"]["cron"] == "0 2 * * 1-5" and len(job["vms"]) == 2
        assert job["retention"]["daily"] == 7 and job["retention"]["weekly"] == 4

        # it runs, and the table tells by itself how far it is
        row = _row(looks, "jobs", "nightly")
        for kind in ("Full", "Incremental"):
            row.get_by_role("button", name="Run Now").click()
            _until(looks, row, "Waiting", "Starting", "Running", "Finishing")
            _until(looks, row, "Available")
            runs = f"/backupjobs/{job['id']}/backupjobruns"
            newest = raksha.of(shop).get(f"{runs}?sort=created_at:desc")["backupjobruns"]
            assert newest[0]["kind"] == kind.lower()
            if kind == "Full":
                # else the second run of this day would take its place
                raksha.of(shop).put(f"{runs}/{newest[0]['id']}", {"protected": True}, headers={"If-Match": "*"})
        looks.accessible("#content_body")
        row.locator("a", has_text="nightly").first.click()
        page.wait_for_selector(".raksha-chain")
        assert page.locator(".raksha-chain circle.raksha-full").count() == 1
        assert page.locator(".raksha-chain rect.raksha-incremental").count() == 1
        looks.accessible("#content_body")
        looks.picture("horizon-job")
        page.click("text=Settings >> nth=-1")
        page.wait_for_selector("dd:has-text('Monday to Friday at 02:00 (UTC)')")
        page.locator(".nav-tabs").get_by_text("Runs").click()
        page.wait_for_selector("#runs tbody tr:has-text('Incremental')")

        # one of its servers is made anew; the dialog says what that would do
        _row(looks, "runs", "Incremental").locator("td a").first.click()
        page.wait_for_selector(".raksha-log li:has-text('Ended')")
        looks.accessible("#content_body")
        looks.picture("horizon-run")
        page.locator(".detail-actions").get_by_text("Restore", exact=True).first.click()
        page.wait_for_selector(".modal .raksha-choices")
        for box in page.locator(".modal tr", has_text="database").locator("input[type=checkbox]").all():
            box.uncheck()
        looks.accessible(".modal")
        page.click(".modal .nav-pills >> text=Where to")
        page.wait_for_selector(".modal [data-raksha-preview] >> text=web-restored")
        # its address is the one of the server that is still there
        page.wait_for_selector(".modal [data-raksha-preview] >> text=is taken")
        assert "As it was (raksha)" in page.inner_text(".modal [name=flavor]")
        page.select_option(".modal [name=networks]", label="shared")
        page.wait_for_selector(".modal [data-raksha-preview] >> text=Nothing is known to stand in its way")
        looks.accessible(".modal")
        looks.picture("horizon-restore")
        page.click(".modal input[type=submit]")
        page.wait_for_selector("#restores tbody tr")
        row = _row(looks, "restores", "web-restored")
        _until(looks, row, "Done", seconds=300)
        looks.accessible("#content_body")
        row.locator("td a").first.click()
        page.wait_for_selector("a:has-text('web-restored')")
        looks.accessible("#content_body")
        assert [each["name"] for each in shop.nova.get("/servers?name=web-restored")["servers"]] == ["web-restored"]

        looks.go("/project/protection_overview/")
        assert page.locator("#vms tbody tr:has(.raksha-good)").count() == 2
        looks.accessible("#content_body")
        looks.picture("horizon-overview")

        # what the API refuses is said, with the id that operators ask for
        looks.go("/project/backup_jobs/")
        row = _row(looks, "jobs", "nightly")
        _delete(looks, row)
        page.wait_for_selector(".messages .alert-danger")
        told = " ".join(looks.alerts())
        assert "protected" in told and "req-" in told, told
        full = next(each for each in newest if each["kind"] == "full")
        looks.go(f"/project/backup_jobs/{job['id']}/runs/{full['id']}/")
        page.locator(".detail-actions .dropdown-toggle").click()
        page.locator(".detail-actions").get_by_text("End Protection").click()
        page.wait_for_selector(".messages .alert-success")
        looks.go("/project/backup_jobs/")
        _delete(looks, _row(looks, "jobs", "nightly"))
        page.wait_for_selector("#jobs tbody tr.empty", timeout=180_000)
        assert raksha.of(shop).get("/backupjobs")["backupjobs"] == []
        assert not looks.problems


def test_a_job_is_changed_verified_and_restored_in_other_ways(url: str, raksha: Service, shop: Cloud) -> None:
    web = next(each["id"] for each in shop.nova.get("/servers")["servers"] if each["name"] == "web")
    raksha.sees(shop, web)
    api = raksha.of(shop)
    job = api.post("/backupjobs", {"name": "edited", "vms": [{"id": web}]})["id"]
    run = raksha.run(shop, job, "full")
    assert run["state"] == "available", (run, raksha.logs()[-4000:])
    disk = run["vms"][0]["resources"][0]["resource"]
    with browser(url) as looks:
        page = looks.page
        looks.log_in(shop.name)

        looks.go("/project/backup_jobs/")
        _choose(looks, _row(looks, "jobs", "edited"), "Edit Job")
        page.wait_for_selector(".modal .raksha-choices")
        assert page.input_value(".modal [name=name]") == "edited"
        page.fill(".modal [name=name]", "changed")
        page.click(".modal .nav-pills >> text=When")
        page.select_option(".modal [name=often]", "hours")
        page.fill(".modal [name=hours]", "6")
        page.wait_for_selector(".modal .raksha-times li")
        page.click(".modal .nav-pills >> text=How long")
        page.select_option(".modal [name=keep]", "some")
        page.fill(".modal [name=daily]", "7")
        page.wait_for_selector(".modal [data-raksha-preview] >> text=would stay")
        looks.accessible(".modal")
        page.click(".modal input[type=submit]")
        page.wait_for_selector("#jobs tbody tr:has-text('changed')")
        found = api.get(f"/backupjobs/{job}")
        assert (found["name"], found["schedule"]["every"]) == ("changed", 21600)
        assert ([vm["id"] for vm in found["vms"]], found["retention"]["daily"]) == ([web], 7)

        _choose(looks, _row(looks, "jobs", "changed"), "Verify Restore Points")
        page.wait_for_selector(".messages .alert-success")
        looks.go(f"/project/backup_jobs/{job}/?tab=job__verifications")
        row = _row(looks, "verifications", "All restore points")
        assert "Nothing is damaged" in _until(looks, row, "Done")
        looks.accessible("#content_body")
        looks.go(f"/project/backup_jobs/{job}/runs/{run['id']}/")
        assert "–" not in page.locator(".raksha-facts div", has_text="Last verified").inner_text()

        for kind, words in (("image", "Images"), ("volume", "New volumes")):
            _restored(looks, job, run["id"], kind, words, disk)
        (image,) = shop.glance.get("/images?visibility=private")["images"]
        assert image["status"] == "active"
        (volume,) = shop.cinder.get("/volumes/detail")["volumes"]
        assert volume["status"] == "available"
        shop.cinder.delete(f"/volumes/{volume['id']}")
        shop.nova.post(f"/servers/{web}/action", {"os-stop": None})
        shop.wait_for_server(web, "SHUTOFF")
        raksha.wait(lambda: api.get(f"/vms/{web}")["power"] == "shut off")
        _restored(looks, job, run["id"], "in_place", "Over the server", disk)
        shop.nova.post(f"/servers/{web}/action", {"os-start": None})
        shop.wait_for_server(web, "ACTIVE")

        looks.go("/project/backup_jobs/")
        _delete(looks, _row(looks, "jobs", "changed"))
        page.wait_for_selector("#jobs tbody tr.empty", timeout=180_000)
        assert not looks.problems


def _restored(looks: Looks, job: str, run: str, kind: str, words: str, disk: str) -> None:
    """One disk, by the dialog, until the table of restores says that it is done."""
    page = looks.page
    looks.go(f"/project/backup_jobs/{job}/runs/{run}/")
    page.locator(".detail-actions").get_by_text("Restore", exact=True).first.click()
    page.wait_for_selector(".modal .raksha-choices")
    boxes = page.locator(".modal input[name=disks]")
    for box in boxes.all():
        box.set_checked(str(box.get_attribute("value")).endswith(f"/{disk}"))
    page.click(".modal .nav-pills >> text=Where to")
    page.select_option(".modal [name=kind]", kind)
    page.wait_for_selector(".modal [data-raksha-preview] >> text=are restored")
    looks.accessible(".modal")
    page.click(".modal input[type=submit]")
    page.wait_for_selector("#restores tbody tr")
    _until(looks, _row(looks, "restores", words), "Done", seconds=300)


def _choose(looks: Looks, row: Any, action: str) -> None:
    row.locator(".dropdown-toggle").click()
    row.get_by_text(action, exact=True).click()


def _delete(looks: Looks, row: Any) -> None:
    row.locator(".dropdown-toggle").click()
    row.get_by_text("Delete Job and Its Restore Points").click()
    looks.page.locator(".modal .btn-primary, .modal .btn-danger").last.click()


def test_the_keyboard_is_enough_to_make_a_job(url: str, raksha: Service, shop: Cloud) -> None:
    """From the first field to the button by Tab, Space and Enter."""
    with browser(url) as looks:
        page = looks.page
        looks.log_in(shop.name)
        looks.go("/project/backup_jobs/create/")
        page.wait_for_selector(".raksha-choices")
        page.focus("[name=name]")
        page.keyboard.type("by keyboard")
        for _ in range(12):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.name") == "vms":
                break
        page.keyboard.press("Space")
        for _ in range(20):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.type") == "submit":
                break
        page.keyboard.press("Enter")
        page.wait_for_selector("#jobs tbody tr:has-text('by keyboard')")
    (job,) = raksha.of(shop).get("/backupjobs?name=by%20keyboard")["backupjobs"]
    assert len(job["vms"]) == 1
    raksha.of(shop).delete(f"/backupjobs/{job['id']}")


def test_operators_see_processes_jobs_and_usage(url: str, admin: Cloud) -> None:
    with browser(url) as looks:
        page = looks.page
        looks.log_in("admin")
        looks.go("/admin/data_protection/")
        assert page.locator("#services tbody tr", has_text="agent").count() == 1
        assert page.locator("#services tbody tr", has_text="scheduler").count() == 1
        looks.accessible("#content_body")
        page.locator(".nav-tabs").get_by_text("Usage").click()
        page.wait_for_selector(f"#usage tbody tr:has-text('{admin.name}')")
        assert not looks.alerts() and not looks.problems

        # an agent gets no new work, then it does again
        page.locator(".nav-tabs").get_by_text("Processes").click()
        for action, state in (("Drain", "Drained"), ("Enable", "Enabled")):
            row = _row(looks, "services", "agent")
            if (more := row.locator(".dropdown-toggle")).count():
                more.click()
            row.get_by_text(action, exact=True).click()
            page.wait_for_selector(".messages .alert-success")
            looks.until("/admin/data_protection/", partial(_says, looks, "services", "agent", state))
        assert not looks.problems


def test_horizon_works_on_without_the_api(url: str, raksha: Service, shop: Cloud) -> None:
    api = raksha.commands["api"]
    with browser(url) as looks:
        looks.log_in(shop.name)
        api.end(signal.SIGTERM)
        try:
            for path in ("protection_overview", "backup_jobs", "backup_jobs/create", "protection_restores"):
                looks.go(f"/project/{path}/")
                assert any("could not be read" in each for each in looks.alerts()), (path, looks.alerts())
            looks.go("/project/instances/")
            assert looks.page.locator("#instances tbody tr", has_text="database").count() == 1
        finally:
            api.start()
            raksha.wait(lambda: answers(raksha.url))
