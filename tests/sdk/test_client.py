"""The blocking client, verb by verb."""

from __future__ import annotations

import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

import kerneld_client
from kerneld.calls import Access, Grant, LimitMode, Limits, ListArgs, Priority, RegisterArgs, Role
from kerneld.errors import CannotFit, QuotaExceeded, Unavailable
from kerneld_client import errors, values
from tests.syscalls.fake_kernel import piece_at, token_at
from tests.syscalls.rig import Rig


def test_connect_logs_in_and_says_who_we_are(client: kerneld_client.Client) -> None:
    assert client.whoami().roles == ("admin",)
    assert client.is_serving()


def test_connect_where_nobody_is_fails_at_once_and_says_so(tmp_path: Path) -> None:
    with pytest.raises(errors.Unavailable, match="Is it running"):
        kerneld_client.connect(tmp_path / "none.sock")


def test_connect_with_a_token_needs_no_login(rig: Rig) -> None:
    with kerneld_client.connect(rig.path, token="viewer") as client:
        assert client.whoami().name == "viewer"
    assert rig.identity.peers == []


def test_connect_takes_the_socket_of_the_environment(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KERNELD_SOCKET", rig.path)
    with kerneld_client.connect() as client:
        assert client.whoami().name


def test_load_reports_progress_and_returns_the_model(client: kerneld_client.Client, rig: Rig) -> None:
    steps: list[values.LoadProgress] = []
    model = client.load("/models/tiny", quant="int8", kv_quant="fp8", progress=steps.append)
    assert [step.bytes_done for step in steps] == [0, 50, 100]
    assert (model.name, model.state, model.bytes) == ("tiny", "resident", 100)
    assert rig.kernel.seen[-1][2] == RegisterArgs("tiny", "/models/tiny", 0, "int8", kv_quant="fp8")
    assert [type(event).__name__ for event in client.load_stream("/models/tiny")] == ["LoadProgress"] * 3 + ["ModelInfo"]


def test_a_relative_path_that_is_here_is_sent_whole(
    client: kerneld_client.Client, rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    client.register("demo")
    assert rig.kernel.seen[-1][2].path == str(tmp_path / "demo")
    client.register("elsewhere")
    assert rig.kernel.seen[-1][2].path == "elsewhere"


def test_models_are_listed_shown_unloaded_and_removed(client: kerneld_client.Client) -> None:
    for name in ("a", "b", "c"):
        client.load(f"/m/{name}")
    assert [model.name for model in client.models()] == ["a", "b", "c"]  # two pages
    assert client.model("a").state == values.ModelState.RESIDENT
    assert client.unload("a").state == "registered"
    client.remove_model("a")
    with pytest.raises(errors.NotFound):
        client.model("a")


def test_a_context_is_freed_at_the_end_of_its_block(client: kerneld_client.Client) -> None:
    with client.alloc("demo", priority="batch", nice=3, labels={"a": "b"}, seed=5, durability="none", max_tokens=64) as context:
        info = context.stat()
        assert (info.priority, info.nice, info.labels, info.seed, info.max_tokens) == (Priority.BATCH.value, 3, {"a": "b"}, 5, 64)
    assert client.contexts() == []


def test_a_context_that_was_freed_inside_its_block_is_no_error(client: kerneld_client.Client) -> None:
    with client.alloc("demo") as context:
        context.free()


def test_contexts_verbs(client: kerneld_client.Client, rig: Rig) -> None:
    context = client.context(client.alloc("demo").id)
    context.infer("hi", max_tokens=3).result()
    assert context.read(5, 2) == values.ContextText(5, (token_at(5), token_at(6)), piece_at(5) + piece_at(6), 8)
    assert context.truncate(6).num_tokens == 6
    assert context.suspend().state == "suspended"
    assert context.resume().state == "idle"
    assert context.set(nice=4).nice == 4
    assert context.grant("tenant:lab", ["read", "fork"]).grants[0].access == {"read", "fork"}
    assert rig.kernel.seen[-1][2][1] == Grant("tenant:lab", frozenset({Access.READ, Access.FORK}))
    assert context.revoke("tenant:lab").grants == ()
    assert context.fork(at=3).stat().parent == context.id
    assert context.score(tokens=[4, 5]).total == -2.0
    assert len(client.contexts()) == 2
    client.contexts(all=True, model="m", tenant="t")
    assert rig.kernel.seen[-1][2] == ListArgs(everybody=True, model="m", tenant="t")


def test_images_verbs(client: kerneld_client.Client) -> None:
    context = client.alloc("demo")
    image = context.checkpoint(name="before lunch")
    assert (image.name, image.context_id) == ("before lunch", context.id)
    restored = client.restore(image)
    assert restored.restored is not None
    assert (restored.restored.pages_restored, restored.restored.recompute_reason) == (2, "the dtype differs")
    assert client.restore(image.id).id != restored.id
    assert client.images() == [image]
    assert client.verify_image(image).problems == ("page 2 does not hold its checksum",)
    client.delete_image(image)
    assert client.images() == []


def test_admin_verbs(client: kerneld_client.Client, rig: Rig) -> None:
    assert client.add_tenant("lab/a", weight=3, limits=values.Limits(max_contexts=2)).limits.max_contexts == 2
    assert client.set_tenant("lab/a", weight=5).weight == 5
    assert rig.kernel.seen[-1][2] == ("lab/a", 5, None, "")
    client.set_tenant("lab/a", limits=values.Limits())
    assert rig.kernel.seen[-1][2] == ("lab/a", None, Limits(), "")
    assert [tenant.path for tenant in client.tenants()] == ["lab/a"]
    token = client.add_token("lab/a", name="ci", roles=["viewer"], lifetime_s=60)
    assert (token.token, rig.kernel.seen[-1][2]) == ("secret", ("lab/a", "ci", frozenset({Role.VIEWER}), 60.0))
    assert client.tokens()[0].name == "ci"
    client.remove_token(token.id)
    assert client.remove_tenant("lab/a", force=True) == 2
    assert client.drain(timeout_s=1) == values.Drained(3, 1)
    assert client.top().workers[0].device == "cpu:0"
    assert len(list(client.top_stream(count=2))) == 2
    assert [event.sequence for event in client.events(since=2)] == [2, 3]


def test_memory_verbs(client: kerneld_client.Client, rig: Rig) -> None:
    memory = client.memory(num_decisions=5)
    assert (memory.accounts[0].kinds, memory.tiers[0].guaranteed_bytes) == ({"kv": 50}, 30)
    assert (memory.decisions[0].chosen, memory.decisions[0].measured_s) == ("host", None)
    assert client.memory().decisions == ()
    told = client.explain(context_id="a" * 32)
    assert told.remedies[0].text == "raise the device limit of lab to 64 B"
    assert told.queue is not None
    assert told.queue.position == 2
    assert client.explain(model="m").queue is None
    with pytest.raises(errors.InvalidArgument):
        client.explain()
    with pytest.raises(errors.InvalidArgument):
        client.explain(request="no id")
    asked = client.explain(request="2" * 32)
    assert asked.outlook is not None
    assert (asked.subject, asked.outlook.position) == (f"request {'2' * 32}", 2)
    assert rig.kernel.seen[-1][0] == "explain_request"
    assert [each.context_id for each in client.requests(all=True, tenant="lab")] == ["1" * 32]
    assert rig.kernel.seen[-1][2] == ListArgs(everybody=True, tenant="lab")
    assert [part.problems for part in client.fsck()] == [(), ("it does not hold",)]
    client.add_tenant("lab/b")
    client.set_tenant("lab/b", weight=2, revision="ab")
    assert rig.kernel.seen[-1][2] == ("lab/b", 2, None, "ab")


def test_modes_of_limits_are_sent_as_words_and_a_wrong_one_is_named(client: kerneld_client.Client, rig: Rig) -> None:
    limits = values.Limits(max_running=2, modes={"max_running": values.LimitMode.HARD})
    assert client.add_tenant("lab/m", limits=limits).limits == limits
    assert rig.kernel.seen[-1][2] == ("lab/m", 1, Limits(max_running=2, modes={"max_running": LimitMode.HARD}))
    with pytest.raises(errors.InvalidArgument, match=r"limits.modes\['max_running'\]: must be soft or hard"):
        client.add_tenant("lab/n", limits=values.Limits(modes={"max_running": "firm"}))  # type: ignore[dict-item]


def test_a_weight_of_nothing_is_sent_as_it_is(client: kerneld_client.Client, rig: Rig) -> None:
    client.add_tenant("lab/w", weight=0)
    assert rig.kernel.seen[-1][2] == ("lab/w", 0, Limits()), "whoever gives none is refused, and not taken for 1"
    with pytest.raises(errors.InvalidArgument, match="weight"):
        client.add_tenant("lab/x", weight=-1)


def test_every_mutating_call_has_a_request_id_of_its_own_or_the_callers(client: kerneld_client.Client, rig: Rig) -> None:
    client.alloc("demo")
    client.alloc("demo")
    client.alloc("demo", request_id="mine")
    ids = [caller.request_id for verb, caller, _ in rig.kernel.seen if verb == "alloc"]
    assert len(set(ids)) == 3
    assert ids[2] == "mine"
    assert all(ids)


def test_a_call_that_the_daemon_cannot_answer_yet_is_repeated_with_the_same_request_id(client: kerneld_client.Client, rig: Rig) -> None:
    class Once(dict[str, Exception]):
        """Fails a verb the first time."""

        def __getitem__(self, verb: str) -> Exception:
            return self.pop(verb)

    rig.kernel.failures = Once(alloc=Unavailable("The worker is restarting.", retry_after_s=0.01))
    client.alloc("demo")
    first, second = (caller for verb, caller, _ in rig.kernel.seen if verb == "alloc")
    assert (first.request_id, first.digest) == (second.request_id, second.digest)


def test_errors_are_typed_and_carry_their_facts(client: kerneld_client.Client, rig: Rig) -> None:
    rig.kernel.failures["alloc"] = QuotaExceeded("Too many.", facts={"tenant": "lab"}, retry_after_s=2.5)
    with pytest.raises(errors.QuotaExceeded) as quota:
        client.alloc("demo")
    assert (quota.value.code, quota.value.retry_after_s, quota.value.tenant) == (grpc.StatusCode.RESOURCE_EXHAUSTED, 2.5, "lab")
    facts = {"needed_bytes": "10", "limit_bytes": "5", "holders": '{"lab/b": 4}'}
    rig.kernel.failures["alloc"] = CannotFit("Never.", facts=facts)
    with pytest.raises(errors.DeviceOutOfMemory) as memory:
        client.alloc("demo")
    assert isinstance(memory.value, errors.WrongState)
    assert (memory.value.needed_bytes, memory.value.limit_bytes, memory.value.holders) == (10, 5, {"lab/b": 4})


def test_values_that_no_message_can_hold_are_refused_here_and_named(client: kerneld_client.Client) -> None:
    context = client.alloc("demo")
    for field, options in (("max_tokens", {"max_tokens": -1}), ("tokens", {"tokens": [-1]}), ("top_k", {"top_k": "many"})):
        with pytest.raises(errors.InvalidArgument) as refusal:
            context.infer(**options)
        assert refusal.value.field == field
    with pytest.raises(errors.InvalidArgument, match="priority: must be one of interactive, batch, idle"):
        client.alloc("demo", priority="urgent")
    with pytest.raises(errors.InvalidArgument, match="give one of"):
        context.infer("a", tokens=[1])
    with pytest.raises(errors.InvalidArgument, match=r"messages\[0\]"):
        context.infer(messages=[{"role": "user"}])
    with pytest.raises(TypeError, match="tempreature"):
        context.infer("a", tempreature=0.5)  # type: ignore[call-arg]


def test_a_request_that_the_daemon_refuses_names_the_field(client: kerneld_client.Client) -> None:
    with pytest.raises(errors.InvalidArgument) as refusal:
        client.alloc("demo").infer("a", top_p=1.5).result()
    assert (refusal.value.field, refusal.value.problem) == ("sampling.top_p", "must be between 0 and 1; it is 1.5.")


def test_chat_messages_and_one_stop_string_are_taken(client: kerneld_client.Client, rig: Rig) -> None:
    client.alloc("demo").infer(messages=[{"role": "user", "content": "hi"}], stop="###", max_tokens=1).result()
    args = rig.kernel.seen[-1][2]
    assert (args.input.messages, args.stop) == ((("user", "hi"),), ("###",))


def test_handles_cannot_be_pickled(client: kerneld_client.Client) -> None:
    context = client.alloc("demo")
    for handle in (client, context, context.infer("a")):
        with pytest.raises(TypeError, match="cannot be pickled"):
            pickle.dumps(handle)


def test_one_client_serves_several_threads(client: kerneld_client.Client) -> None:
    def work(i: int) -> tuple[int, ...]:
        with client.alloc("demo") as context:
            return context.infer("x", max_tokens=10 + i).result().tokens

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(work, range(16)))
    assert answers == [tuple(token_at(position) for position in range(5, 15 + i)) for i in range(16)]


def test_a_closed_client_refuses_calls(rig: Rig) -> None:
    client = kerneld_client.connect(rig.path)
    client.close()
    with pytest.raises(errors.KerneldError, match="closed"):
        client.whoami()
