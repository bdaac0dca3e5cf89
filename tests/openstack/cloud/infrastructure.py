"""What OpenStack stands on: Debian's MariaDB, RabbitMQ, memcached, libvirt, Ceph."""

from __future__ import annotations

import shutil
import subprocess
import time
import uuid
from pathlib import Path

import libvirt
import pymysql

from tests.openstack.cloud.daemons import CloudError, run, start, stop, tail, wait_for_port
from tests.openstack.cloud.layout import (
    CEPH_CONF,
    CEPH_MON,
    CEPH_POOL,
    DATA,
    ETC,
    IP,
    LIBVIRT,
    LIBVIRT_URI,
    LOG,
    MARIADB,
    MEMCACHED,
    MESSAGES,
    PASSWORD,
    RABBIT,
    RABBIT_CLUSTER,
    RABBIT_MAPPER,
    RUN,
)

DATABASES = ("keystone", "glance", "cinder", "placement", "nova_api", "nova", "nova_cell0", "neutron", "raksha")
_TABLES = ("mysql_system_tables.sql", "mysql_performance_tables.sql", "mysql_system_tables_data.sql")
#: seconds
_START = 60


def up() -> None:
    start_mariadb()
    _start_rabbit()
    start("memcached", ["memcached", "-u", "nobody", "-l", IP, "-p", str(MEMCACHED), "-m", "64"])
    _share_data()
    _start_libvirt()
    _start_ceph()
    wait_for_port("memcached", MEMCACHED)
    wait_for_port("rabbit", RABBIT)


def down() -> None:
    for name in ("ceph-mgr", "ceph-osd", "ceph-mon", "memcached", "libvirt", "rabbit", "epmd", "mariadb"):
        stop(name)
    for target in sorted((each for each in _mounted() if Path(each).is_relative_to(DATA)), reverse=True):
        # a mount that is shared stands there more than once, and may be gone with another
        subprocess.run(["umount", "--lazy", target], stderr=subprocess.DEVNULL, check=False)


# -- MariaDB ------------------------------------------------------------------------------------------


def start_mariadb() -> None:
    data = DATA / "mysql"
    command = ["/usr/sbin/mariadbd", "--no-defaults", "--user=root", f"--datadir={data}"]
    # a power cut of this machine may cost the cloud its data: it is made anew then
    command += ["--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=192M", "--innodb-use-native-aio=0"]
    fresh = not data.exists()
    if fresh:
        _prepare_mariadb(data, command)
    command += [f"--bind-address={IP}", f"--port={MARIADB}", f"--socket={RUN}/mariadb.sock", f"--pid-file={data}/pid"]
    start("mariadb", [*command, "--max-connections=500", "--character-set-server=utf8mb4", "--performance-schema=OFF"])
    wait_for_port("mariadb", MARIADB)
    if fresh:
        with pymysql.connect(host=IP, port=MARIADB, user="cloud", password=PASSWORD) as connection:
            for name in DATABASES:
                connection.cursor().execute(f"create database {name} character set utf8mb3")


def _prepare_mariadb(data: Path, command: list[str]) -> None:
    data.mkdir()
    parts = ["create database mysql;\nuse mysql;\nset @auth_root_socket=NULL;\n"]
    parts += [Path("/usr/share/mysql", name).read_text() for name in _TABLES]
    parts.append(
        "flush privileges;\n"
        f"create user 'cloud'@'{IP}' identified by '{PASSWORD}';\ngrant all on *.* to 'cloud'@'{IP}';\n"
    )
    words = [*command, "--bootstrap", "--silent-startup", "--log-warnings=0"]
    done = subprocess.run(words, input="".join(parts).encode(), capture_output=True, timeout=120, check=False)
    if done.returncode:
        shutil.rmtree(data)
        raise CloudError(f"mariadbd --bootstrap: {done.stderr.decode()[-2000:]}")


# -- RabbitMQ -----------------------------------------------------------------------------------------


def _start_rabbit() -> None:
    folder = DATA / "rabbit"
    folder.mkdir(exist_ok=True)
    (ETC / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = {IP}:{RABBIT}\ndefault_user = cloud\ndefault_pass = {PASSWORD}\n"
        "vm_memory_high_watermark.absolute = 1GB\ndisk_free_limit.absolute = 200MB\nlog.file.level = warning\n"
    )
    (ETC / "rabbitmq-plugins").write_text("[].\n")
    variables = _rabbit_variables()
    # a port mapper that the broker starts would outlive it
    start("epmd", ["epmd", "-address", IP, "-port", str(RABBIT_MAPPER)], **variables)
    start("rabbit", ["/usr/lib/rabbitmq/bin/rabbitmq-server"], **variables)


def bus_of_its_own(name: str) -> str:
    """The address of a new virtual host of the broker: what is said there is heard nowhere else, but for whoever looks
    at its trace."""
    traced = ["trace_on", "-p", name]
    for words in (["add_vhost", name], ["set_permissions", "-p", name, "cloud", ".*", ".*", ".*"], traced):
        run("/usr/lib/rabbitmq/bin/rabbitmqctl", "--node", "cloud@localhost", *words, **_rabbit_variables())
    return f"{MESSAGES}{name}"


def _rabbit_variables() -> dict[str, str]:
    folder = DATA / "rabbit"
    return {
        "HOME": str(folder),
        "ERL_EPMD_ADDRESS": IP,
        "ERL_EPMD_PORT": str(RABBIT_MAPPER),
        "RABBITMQ_NODENAME": "cloud@localhost",
        "RABBITMQ_DIST_PORT": str(RABBIT_CLUSTER),
        "RABBITMQ_CONFIG_FILE": str(ETC / "rabbitmq.conf"),
        "RABBITMQ_CONF_ENV_FILE": str(ETC / "none"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(ETC / "rabbitmq-plugins"),
        "RABBITMQ_MNESIA_BASE": str(folder / "data"),
        "RABBITMQ_LOG_BASE": str(LOG),
        "RABBITMQ_PID_FILE": str(folder / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 1:1 +sbwt none -kernel inet_dist_use_interface {127,0,0,1}",
    }


# -- libvirt ------------------------------------------------------------------------------------------

#: $1 is the host's directory, $2 where to note the pid
_NAMESPACE = """
set -e
for pair in etc:/etc/libvirt run:/run/libvirt lib:/var/lib/libvirt cache:/var/cache/libvirt; do
    mkdir -p "${pair#*:}"
    mount --bind "$1/${pair%%:*}" "${pair#*:}"
done
exec /usr/sbin/libvirtd --pid-file "$1/libvirtd.pid"
"""


def _share_data() -> None:
    """Volumes that are mounted later are seen in libvirtd's namespace, and in those of its QEMUs."""
    # not by `ismount`, which sees no mount of a directory onto itself: a second one would hide volumes below the first
    if str(DATA) not in _mounted():
        run("mount", "--bind", DATA, DATA)
        run("mount", "--make-shared", DATA)


def _mounted() -> list[str]:
    return [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _start_libvirt() -> None:
    """One of its own: Nova refuses its first start on a hypervisor that has guests."""
    for name in ("etc", "run", "lib", "cache"):
        (LIBVIRT / name).mkdir(parents=True, exist_ok=True)
    for folder in (LIBVIRT, *LIBVIRT.iterdir()):
        if folder.is_dir():
            folder.chmod(0o755)
    (LIBVIRT / "etc/qemu.conf").write_text(
        'stdio_handler = "file"\nsecurity_driver = "none"\nuser = "root"\ngroup = "root"\n'
    )
    (LIBVIRT / "etc/libvirtd.conf").write_text(f'host_uuid = "{uuid.uuid4()}"\n')
    words = ["unshare", "--mount", "--propagation", "slave", "/bin/bash", "-c", _NAMESPACE, "bash", LIBVIRT]
    start("libvirt", words)
    deadline = time.monotonic() + _START
    while True:
        try:
            libvirt.open(LIBVIRT_URI).close()
        except libvirt.libvirtError as error:
            if time.monotonic() > deadline:
                raise CloudError(f"libvirtd does not answer: {error}\n{tail('libvirt')}") from error
            time.sleep(0.2)
        else:
            return


# -- Ceph ---------------------------------------------------------------------------------------------

_CEPH = """\
[global]
fsid = {fsid}
mon_host = v2:{ip}:{port}
public_addr = {ip}
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 8
osd_pool_default_pgp_num = 8
osd_pool_default_pg_autoscale_mode = off
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_data_avail_crit = 1
keyring = {etc}/ceph.keyring
run_dir = {run}
admin_socket =
log_file = {log}/ceph-$name.log
mon_cluster_log_file = {log}/ceph-cluster.log
ms_bind_ipv6 = false
mon_data = {data}/mon
mgr_data = {data}/mgr
mgr_initial_modules =
osd_data = {data}/osd
osd_objectstore = bluestore
bluestore_block_size = {size}
bluestore_block_wal_size = 0
bluestore_block_db_size = 0
osd_memory_target = 939524096
bluestore_fsck_on_mount = false
osd_op_num_shards = 2
"""


def _start_ceph() -> None:
    """A monitor, a manager, and an OSD on a sparse file, all in user space."""
    data = DATA / "ceph"
    fresh = not CEPH_CONF.exists()
    if fresh:
        for name in ("mon", "osd", "mgr"):
            (data / name).mkdir(parents=True, exist_ok=True)
        fsid = str(uuid.uuid4())
        CEPH_CONF.write_text(
            _CEPH.format(fsid=fsid, ip=IP, port=CEPH_MON, etc=ETC, run=RUN, log=LOG, data=data, size=12 << 30)
        )
        keyring = ETC / "ceph.keyring"
        run("ceph-authtool", "--create-keyring", keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *")
        keyring.chmod(0o644)
        run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", f"[v2:{IP}:{CEPH_MON}]", data / "map")
        run("ceph-mon", "-c", CEPH_CONF, "--mkfs", "-i", "a", "--monmap", data / "map")
    start("ceph-mon", ["ceph-mon", "-f", "-c", CEPH_CONF, "-i", "a"])
    _until_ceph_answers()
    if fresh:
        osd = str(uuid.uuid4())
        _ceph("osd", "new", osd)
        run("ceph-osd", "-c", CEPH_CONF, "-i", "0", "--mkfs", "--osd-uuid", osd, timeout=_START)
    start("ceph-osd", ["ceph-osd", "-f", "-c", CEPH_CONF, "-i", "0"])
    # without one nobody counts bytes, and Cinder finds no room
    start("ceph-mgr", ["ceph-mgr", "-f", "-c", CEPH_CONF, "-i", "x"])
    if fresh:
        _ceph("osd", "pool", "create", CEPH_POOL, "16", "16")
        run("rbd", "-c", CEPH_CONF, "pool", "init", CEPH_POOL, timeout=_START)


def _ceph(*words: str) -> str:
    return run("ceph", "-c", CEPH_CONF, "--connect-timeout", "5", *words, timeout=_START)


def _until_ceph_answers() -> None:
    deadline = time.monotonic() + _START
    while True:
        try:
            _ceph("osd", "stat")
        except CloudError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)
        else:
            return
