"""TCP: on loopback in plain, elsewhere with TLS only; tokens and client certificates say who calls."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import kerneld_client
from kerneld_client import Client, Tls, errors
from tests.e2e.rig import FAKE, ROOT, DaemonRig, fake_model, free_port

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl, which makes the certificates, is not installed")


def openssl(folder: Path, *arguments: str) -> None:
    """Run openssl in a folder."""
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


def make_authority(folder: Path, name: str) -> None:
    """Make NAME.pem and NAME.key of an authority."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
    openssl(folder, "req", "-x509", *key, "-out", f"{name}.pem", "-days", "2", "-subj", f"/CN={name}")


def make_certificate(folder: Path, authority: str, name: str) -> None:
    """Make NAME.pem and NAME.key, signed by an authority."""
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{name}.key")
    openssl(folder, "req", *key, "-out", f"{name}.csr", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost")
    signer = ("-CA", f"{authority}.pem", "-CAkey", f"{authority}.key", "-CAcreateserial", "-copy_extensions", "copy", "-days", "2")
    openssl(folder, "x509", "-req", "-in", f"{name}.csr", "-out", f"{name}.pem", *signer)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of the server, of ann and of a stranger, and one of another authority."""
    folder = tmp_path_factory.mktemp("keys")
    make_authority(folder, "authority")
    make_authority(folder, "others")
    for name in ("server", "ann", "stranger"):
        make_certificate(folder, "authority", name)
    make_certificate(folder, "others", "mallory")
    return folder


@pytest.fixture(scope="module")
def tls_rig(tmp_path_factory: pytest.TempPathFactory, keys: Path) -> Iterator[DaemonRig]:
    """A daemon that demands client certificates; its address is `address`."""
    port = free_port()
    rig = DaemonRig(
        tmp_path_factory.mktemp("tls"),
        *FAKE,
        f"syscalls.tcp=127.0.0.1:{port}",
        f"syscalls.tls_cert={keys / 'server.pem'}",
        f"syscalls.tls_key={keys / 'server.key'}",
        f"syscalls.tls_client_ca={keys / 'authority.pem'}",
        'kerneld.users={ "cert:ann" = "lab/ann" }',
    )
    rig.address = f"127.0.0.1:{port}"
    rig.start()
    with rig.connect() as k:
        k.load(fake_model(rig.folder), name="toy")
        k.add_tenant("lab/bob")
    yield rig
    rig.clean_up()


def as_client(rig: DaemonRig, keys: Path, name: str, **options: str) -> Client:
    """A client over TLS that shows the certificate of `name`."""
    tls = Tls(keys / "authority.pem", keys / f"{name}.pem", keys / f"{name}.key")
    return kerneld_client.connect(rig.address, tls=tls, **options)  # type: ignore[arg-type]


def test_a_certificate_says_who_calls(tls_rig: DaemonRig, keys: Path) -> None:
    with as_client(tls_rig, keys, "ann") as ann:
        me = ann.whoami()
        assert (me.name, me.tenant, me.roles, me.via) == ("ann", "lab/ann", ("user",), "tls")
        assert len(ann.alloc("toy").infer(tokens=[5, 6], max_tokens=10, ignore_eos=True).result().tokens) == 10


def test_a_certificate_that_the_configuration_does_not_name_is_nobody(tls_rig: DaemonRig, keys: Path) -> None:
    with pytest.raises(errors.Unauthenticated) as refusal:
        as_client(tls_rig, keys, "stranger")
    assert "stranger" in str(refusal.value)


def test_a_token_over_tls_wins_over_the_certificate(tls_rig: DaemonRig, keys: Path) -> None:
    with tls_rig.connect() as k:
        token = k.add_token("lab/bob", name="bob").token
    with as_client(tls_rig, keys, "stranger", token=token) as bob:
        assert bob.whoami().tenant == "lab/bob"


def test_without_a_certificate_of_the_authority_there_is_no_connection(tls_rig: DaemonRig, keys: Path) -> None:
    for tls in (Tls(keys / "authority.pem"), Tls(keys / "authority.pem", keys / "mallory.pem", keys / "mallory.key")):
        with pytest.raises(errors.Unavailable):
            kerneld_client.connect(tls_rig.address, tls=tls, token="kd_x_y", timeout_s=3)


def test_a_server_of_another_authority_is_not_believed(tls_rig: DaemonRig, keys: Path) -> None:
    with pytest.raises(errors.Unavailable):
        kerneld_client.connect(tls_rig.address, tls=Tls(keys / "others.pem", keys / "ann.pem", keys / "ann.key"), timeout_s=3)


def test_plain_text_to_a_tls_port_gets_no_answer(tls_rig: DaemonRig) -> None:
    with pytest.raises(errors.Unavailable):
        kerneld_client.connect(tls_rig.address, token="kd_x_y", timeout_s=3)


def test_kernelctl_takes_address_certificates_and_a_token_file(tls_rig: DaemonRig, keys: Path, tmp_path: Path) -> None:
    with tls_rig.connect() as k:
        secret = k.add_token("lab/bob", name="bob").token
    file = tmp_path / "token"
    file.write_text(secret + "\n")
    file.chmod(0o600)
    command = [sys.executable, "-P", "-m", "cli.main", f"--tcp={tls_rig.address}", f"--token-file={file}"]
    command += [f"--tls-ca={keys / 'authority.pem'}", f"--tls-cert={keys / 'ann.pem'}", f"--tls-key={keys / 'ann.key'}"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "sdk" / "python")])}
    done = subprocess.run([*command, "whoami"], capture_output=True, text=True, timeout=30, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "lab/bob" in done.stdout


@pytest.mark.parametrize("address", ["0.0.0.0:0", "[::]:0", "192.0.2.7:8420", "example.org:8420"])
def test_an_address_beyond_loopback_needs_tls(tmp_path: Path, address: str) -> None:
    code, said = DaemonRig(tmp_path, *FAKE, f"syscalls.tcp={address}").refused()
    assert code == 2
    assert "syscalls.tls_cert" in said
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("part", ["tls_cert", "tls_key", "tls_client_ca"])
def test_a_key_file_that_cannot_be_read_is_named(tmp_path: Path, keys: Path, part: str) -> None:
    files = {"tls_cert": keys / "server.pem", "tls_key": keys / "server.key", "tls_client_ca": keys / "authority.pem"}
    files[part] = tmp_path / "not-there.pem"
    settings = [f"syscalls.{name}={path}" for name, path in files.items()]
    code, said = DaemonRig(tmp_path, *FAKE, "syscalls.tcp=127.0.0.1:0", *settings).refused()
    assert code == 1
    assert f"syscalls.{part}" in said
    assert "Traceback" not in said


def test_a_key_file_of_garbage_is_an_error_with_its_name(tmp_path: Path) -> None:
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("-----BEGIN CERTIFICATE-----\nnonsense\n-----END CERTIFICATE-----\n")
    settings = ("syscalls.tcp=127.0.0.1:0", f"syscalls.tls_cert={garbage}", f"syscalls.tls_key={garbage}")
    code, said = DaemonRig(tmp_path, *FAKE, *settings).refused()
    assert code == 1
    assert "Cannot listen" in said or "tls_cert" in said
    assert "Traceback" not in said


def test_over_loopback_a_token_is_enough_and_no_token_is_nobody(tmp_path: Path) -> None:
    port = free_port()
    rig = DaemonRig(tmp_path, *FAKE, f"syscalls.tcp=127.0.0.1:{port}")
    rig.start()
    try:
        with rig.connect() as k:
            k.add_tenant("lab")
            token = k.add_token("lab").token
        with kerneld_client.connect(f"127.0.0.1:{port}", token=token) as lab:
            assert lab.whoami().tenant == "lab"
        with pytest.raises(errors.Unauthenticated):
            kerneld_client.connect(f"127.0.0.1:{port}", token="kd_0123_abcd")
    finally:
        rig.clean_up()
