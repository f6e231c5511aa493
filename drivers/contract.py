"""The contract between the kernel and a device.

A **driver** runs one device group. It is the only code that knows addresses, layouts and kernels. The kernel decides what should happen
and says it in **plans**; a driver carries them out in order and answers with tokens. This file is the manual for authors of drivers, and
all that they have to import; `examples/driver_plugin/` is a driver to begin with, `python -P -m drivers.conformance NAME` the judge.

Terms
-----
arena     the device memory that the driver takes once, in `open`: `slab_bytes` x `num_slabs`, touched. It holds weights and KV.
granule   the unit of frame indices: frame f of the arena starts at byte f * granule_bytes.
space     one KV group of one loaded model (`memory.page.Space`). The driver says how many bytes a frame takes (`KvGroupSpec`).
host tier a memfd mapped by the front and the worker alike; the driver copies pages to and from it (`drivers.hostmem`).
row       a running request inside the driver. It sits in a *row slot* from `RowStart` to its clear; the driver keeps its page table,
          its pending tokens and its sampling state, and plans name only what changed.
plan      page moves + row changes + the number of steps K. All frames that K steps can need are in the rows' tables already.
step      one forward pass over all rows of the plan that still run.

Life cycle
----------
    probe -> open -> { inspect -> load -> [ apply(plan) -> step x K ]* -> unload }* -> close

`probe` and `inspect` change nothing. After `close` a driver is not opened again; another one is made. A worker is one process with one
driver; when its front dies it keeps the driver open, with its models, for the next front.

Threads
-------
`inspect`, `load` and `park` may be called from another thread than `apply` and `step`, one at a time; everything else comes from one. A
load may end between two steps, never within what one step sees: publish a model as one value when it is whole. A step that runs beside a
load should not wait for it. Threads of the driver's own rest between steps: other programs use the machine.

One load, worked
----------------
Granules are 4096 bytes. `inspect` told segments of 10000, 7000 and 300 bytes, one KV group with frames of 8192, and numerics "x". Then

    LoadSpec(model_id=5, source=<what was inspected>, space_ids=(11,), offsets=(0, 12288, 20480))

    writes   byte 0 .. 10000, 12288 .. 19288, 20480 .. 20780 of the arena, and nothing else of it
    opens    space 11: frame f of it is byte f * 4096 to f * 4096 + 8192; any f where that lies in the arena and a plan names it
    answers  LoadedModel(5, bytes_loaded=17300, seconds=...)

Offsets are multiples of the granule, and no two things that live at a time overlap: the kernel sees to that. After `unload(5)` its bytes
are lent elsewhere at once, but pages in space 11 may still be moved and zeroed, until a load names the space again.

One plan, worked
----------------
A context of 20 tokens (its first 16 are in page 0, already in frame 8) asks for more; its next frame is 12; slot 3 is free:

    Plan(seq=7, moves=(), zeros=(Zero(1, DEVICE, 12),), clears=(),
         starts=(RowStart(slot=3, spaces=(1,), position=16, tokens=(t16, t17, t18, t19), frames=((8, 12),), sampling=...),),
         patches=(), runs=(RowRun(slot=3, num_tokens=4),), num_steps=2)

    apply(plan)   zeroes frame 12, seats the row
    step(0)       computes tokens 16..19, writes their KV to frame 12 at offsets 0..3, samples token 20 -> RowResult(3, tokens=(t20,))
    step(1)       computes token 20, writes offset 4, samples token 21                                  -> RowResult(3, tokens=(t21,))

In step 0 each row named in `runs` computes `num_tokens` of its pending tokens; a row that reaches the end of its pending tokens samples
one more, which becomes pending. In steps 1..K-1 every row of `runs` that sampled in the step before, and did not stop, computes that one
token. A row whose pending tokens are not used up (a prefill cut into chunks) samples nothing and rests until a later plan runs it again.

A row with `Sampling.draft_tokens` may get ahead: a driver that drafts guesses the tokens to come, computes them together with the pending
one, and keeps those that the row would have sampled anyway, so that one step answers several tokens. K is then how many tokens the row
samples in the plan, and once it has them it rests. A driver that cannot draft takes no notice.

Ownership: who may write what, and when
---------------------------------------
arena      the driver's alone, weights from `load` to `unload`, a frame while a plan names it: until its last step has answered. The kernel
           reuses frames only afterwards. What a frame holds when it is named first is anything, unless the plan zeroes it.
host tier  pages: the driver, for the moves and zeros of a plan it applies. Images of weights: the driver in `park`, and it reads them in
           `load`; a model that is streamed reads its images until it is unloaded. The front: frames that no plan on its way names.
workspace  the driver's, beyond the arena: taken in `open` or `load`, not inside a step. What a model takes when it first guesses for
           others, and has until it is unloaded, is told in `StepResult.workspace`: the kernel keeps accounts of it.
slabs      given back by `give_back` belong to the device until `take`; no plan and no load names them meanwhile.

Errors, and what each means for whom
------------------------------------
RowResult.error         this row failed (logits not finite, say): its request ends, the other rows are good.
StepResult.failed_models  a streamed model cannot be read any more; its rows of the step failed, all others are good.
PageCorrupt             of `apply`: nothing of the plan was run; the kernel drops plans made after it, and computes the pages again.
ModelUnsupported, ModelCorrupt, DeviceOutOfMemory, UnknownModel   of `inspect`, `load`, `park`, `unload`: the caller reads the sentence,
                        nothing is left behind, everything else runs on.
PlanRejected, DeviceLost, and any error that is not of `drivers.errors`   of `apply` and `step`: the worker ends and is started again;
                        the kernel replays every stream from its tokens. A request that ends three workers is ended itself.
A sentence says what is wrong and what to do; whoever raises one writes it for the person at the terminal.

Numerics
--------
`ModelSpec.numerics` names all that changes the bits of a page: layout, dtype, quantizations, rotary scaling, instructions, versions of
kernels. Pages in the host tier, on disk and in images are used again only under the same string; when in doubt, put it in. A token's KV is
to be the same whether it came by prefill or decode. With `batch_invariant` that holds bit for bit, in any company.

The least, and more
-------------------
Every driver does all of `Driver`, in float32, for some kind of model: chunks, sampling with all of `Sampling` but drafts, scoring, moves,
parking. By capability: `streams` (else there are no `LoadSpec.slots`), `gives_back` (else `give_back` and `take` are never called),
`drafts`, `batch_invariant`, `quantizations`, `kv_quantizations`. Who knows no adapters refuses them in `inspect` with ModelUnsupported.
`copied`, `prefill_s`, `runs_on` and `ops` may say nothing.

Building blocks for authors
---------------------------
`host_driver`, for a device whose memory is the host's, does all of this but the model: derive from it, and write what can be loaded and
what a step computes. What it is made of serves other devices too: `rows` and `plan_check` (row slots), `stepping` and `sampling` (from
hidden states to answers), `arena`, `pages` and `hostmem` (frames, moves, the host tier), `models.loader`, `arrival`, `weight_image` and
`copier` (weights). These change with a sentence in DECISIONS.md, other files any day.

Versions
--------
`CONTRACT_VERSION` grows when a driver that was good is good no more. A driver states the one it was written for; another is refused with a
sentence. A driver of another distribution passes the suite before its first use (`drivers.vetting`). Fields may be added with a default.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from memory.page import Move, Zero

CONTRACT_VERSION = 1


class Capabilities(msgspec.Struct, frozen=True):
    """What a driver can do on this machine."""

    driver: str  # its name, as in the registry
    version: str  # its own, shown to people
    device_name: str  # as its maker calls it
    memory_bytes: int  # what the device has, of which the arena takes a part
    dtypes: tuple[str, ...]  # in which it computes and keeps KV: "float32", which is a must, "bfloat16", "float16"
    ops: tuple[str, ...] = ()  # that it has an implementation for, by name; who states some reports those of each load
    quantizations: tuple[str, ...] = ()  # of weights, while they are loaded: "int8", "int4"
    kv_quantizations: tuple[str, ...] = ()  # of keys and values: "int8", "fp8"
    graph: bool = False  # captures steps and replays them
    batch_invariant: bool = False  # opened so, a row's tokens and log-probabilities are the same bits in any company and cut
    gives_back: bool = False  # slabs of its arena, while nothing is in them
    streams: bool = False  # runs models whose segments do not all stay (`LoadSpec.slots`)
    drafts: bool = False  # takes notice of `Sampling.draft_tokens`
    isa: str = ""  # the best level of instructions that native code can be compiled for on this host
    contract_version: int = CONTRACT_VERSION


class OpenSpec(msgspec.Struct, frozen=True):
    """The memory and settings that a driver gets for its whole life."""

    num_slabs: int
    slab_bytes: int
    granule_bytes: int
    page_tokens: int
    max_rows: int  # row slots are 0 .. max_rows - 1
    max_step_tokens: int  # most tokens of one step, all rows together
    dtype: str = "float32"
    threads: int = 0  # 0: as many as the process may use
    batch_invariant: bool = False
    host_bytes: int = 0  # size of the host tier; its descriptor comes beside the message
    options: dict[str, str] = {}  # driver-specific, refused when unknown


class KvGroupSpec(msgspec.Struct, frozen=True):
    """Layers of a model whose KV shares lifetime and shape."""

    num_layers: int
    frame_bytes: int  # of one page, whole granules
    window: int | None = None


class SegmentSpec(msgspec.Struct, frozen=True):
    """A part of the weights that moves as one: a layer, the embedding, the head."""

    name: str
    size_bytes: int  # as it will lie in the arena, alignment included


class ModelSpec(msgspec.Struct, frozen=True):
    """What a model needs, told before anything of it is loaded."""

    architecture: str
    dtype: str
    vocab_size: int
    max_positions: int
    num_parameters: int
    segments: tuple[SegmentSpec, ...]
    groups: tuple[KvGroupSpec, ...]
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    numerics: str  # names everything that changes the bits of a page: layout, dtype, rotary scaling, kernels
    quant: str = ""  # of the weights, as asked for or as the checkpoint is: "int4", "gptq int4"
    kv_quant: str = ""  # of the pages


class InspectSpec(msgspec.Struct, frozen=True):
    """Which model to look at, and how it would be run."""

    path: str
    max_positions: int = 0  # 0: as the config says; rotary scaling that depends on length is fixed by it
    quant: str = ""  # how weights are quantized while they are loaded, one of `Capabilities.quantizations`; "": not at all
    base: str = ""  # path of the model that an adapter changes; "": a model of its own
    kv_quant: str = ""  # how its keys and values are kept, one of `Capabilities.kv_quantizations`; "": in the compute dtype


class LoadSpec(msgspec.Struct, frozen=True):
    """Where the weights go: `offsets[i]` is the byte offset in the arena of segment i of `ModelSpec.segments`.

    Offset -1 stands for a segment that does not stay: it is streamed, in every forward pass, through one of `slots`, byte offsets of
    places that hold the largest such segment each. The first and the last segment are never streamed.

    With `host_offsets`, the host tier holds an image of every segment, byte for byte as it lies in the arena: that of segment i starts at
    byte `host_offsets[i]` of the memfd, and `checksums[i]` is the crc32c of its `size_bytes`. A driver copies or streams from there in
    place of reading files; a segment whose checksum does not hold comes from the files, and is counted in `LoadedModel.num_corrupt`.

    A model that comes back after an unload comes with its old ids, and its pages may have stayed. Ids that a loaded model has are refused.
    An adapter has no KV groups; the model `base_id` that it changes is loaded, and may come back under its id while the adapter stays.
    """

    model_id: int
    source: InspectSpec
    space_ids: tuple[int, ...]  # one per KV group, in order
    offsets: tuple[int, ...]
    slots: tuple[int, ...] = ()
    host_offsets: tuple[int, ...] = ()  # empty: the host tier has nothing of it
    checksums: tuple[int, ...] = ()  # as many as `host_offsets`
    base_id: int = 0  # of an adapter: the loaded model that it changes


class Sampling(msgspec.Struct, frozen=True):
    """How a row draws its next token.

    Draws are a function of (seed, position) alone. Penalties see the tokens in `RowStart.history` and those sampled since.
    """

    temperature: float = 1.0  # 0: greedy
    top_k: int = 0  # 0: off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0  # over input and output
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    seed: int = 0  # 64 bit
    stop_token_ids: tuple[int, ...] = ()  # the row stops after sampling one of these
    num_logprobs: int = -1  # -1: none; 0: of the chosen token; n: and of the n likeliest
    draft_tokens: int = 0  # most tokens that are guessed ahead and verified in one step; 0: none. What is sampled is the same

    @property
    def has_penalties(self) -> bool:
        """Whether the row's history matters."""
        return self.repetition_penalty != 1.0 or self.presence_penalty != 0.0 or self.frequency_penalty != 0.0

    @property
    def is_plainly_greedy(self) -> bool:
        """Whether the likeliest token is all that is asked for."""
        return self.temperature == 0.0 and self.num_logprobs < 0 and not self.has_penalties


class RowStart(msgspec.Struct, frozen=True, array_like=True):
    """A request takes a row slot."""

    slot: int
    model_id: int
    position: int  # position of tokens[0]; KV of everything before it is in the frames
    tokens: tuple[int, ...]  # pending: known, but their KV is not computed
    frames: tuple[tuple[int, ...], ...]  # [group][page]: the row's page tables
    sampling: Sampling
    history: tuple[int, ...] = ()  # tokens before `position`, only where penalties or drafts need them
    output_start: int = 0  # position from which tokens count as output for penalties
    # >= 0: sample nothing; give log-probabilities of the pending tokens at positions [max(score_from, position + 1), end). Each is told
    # by the token before it, so they come with the step that computes that one, and the first pending token has none.
    score_from: int = -1
    adapter_id: int = 0  # the loaded adapter of `model_id` that the row runs with; 0: none
    draft_model_id: int = 0  # the loaded model that guesses; 0, or one that is not loaded any more: the row's own tokens are looked up


class FramePatch(msgspec.Struct, frozen=True, array_like=True):
    """table[group][page_idx : page_idx + len(frames)] = frames, for the row in `slot`; the table grows where it must."""

    slot: int
    group: int
    page_idx: int
    frames: tuple[int, ...]


class RowRun(msgspec.Struct, frozen=True, array_like=True):
    """The row in `slot` computes `num_tokens` of its pending tokens in step 0 of the plan."""

    slot: int
    num_tokens: int


class Plan(msgspec.Struct, frozen=True, array_like=True):
    """One quantum of work. Order: zeros, moves, late zeros, clears, starts, patches, then the steps."""

    boot_generation: int
    seq: int
    abort_count: int = 0  # aborts that the front has seen; a worker drops plans that were made before its own last abort
    zeros: tuple[Zero, ...] = ()
    moves: tuple[Move, ...] = ()
    clears: tuple[int, ...] = ()  # row slots
    starts: tuple[RowStart, ...] = ()
    patches: tuple[FramePatch, ...] = ()
    runs: tuple[RowRun, ...] = ()
    num_steps: int = 0  # 0: page moves and row changes only
    late_zeros: tuple[Zero, ...] = ()  # frames that a move of this plan reads before they change their owner


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability of a token, and of the likeliest ones at its position, before temperature, penalties and cuts."""

    logprob: float
    top: tuple[tuple[int, float], ...] = ()


class RowResult(msgspec.Struct, frozen=True, array_like=True):
    """What one step did to one row."""

    slot: int
    tokens: tuple[int, ...] = ()  # sampled in this step, several where drafts were kept; empty while a prefill goes on
    logprobs: tuple[TokenLogprob, ...] = ()  # one per sampled token, or per scored token
    is_stopped: bool = False  # the last token is one of its stop tokens; the row computes no more
    error: str = ""  # the row failed alone (logits not finite, say); the other rows are good
    num_drafted: int = 0  # tokens that were guessed and verified in this step; those kept are in `tokens`, before the last one

    @property
    def num_rejected(self) -> int:
        """Guesses that were computed in vain."""
        return max(self.num_drafted - max(len(self.tokens) - 1, 0), 0)


class CopyTimes(msgspec.Struct, frozen=True, array_like=True):
    """Pages copied between the host tier and the device, and the seconds that took; all zeros: none, or the driver does not say."""

    up_bytes: int = 0  # host -> device
    up_s: float = 0.0
    down_bytes: int = 0  # device -> host
    down_s: float = 0.0


class StepResult(msgspec.Struct, frozen=True, array_like=True):
    """The answer to one step."""

    rows: tuple[RowResult, ...]
    compute_s: float  # seconds inside the forward pass and sampling
    num_tokens: int  # computed, all rows together
    failed_models: dict[int, str] = {}  # streamed ones whose weights cannot be read any more, and why; their rows of this step failed
    copies: CopyTimes = CopyTimes()  # of the whole plan; put in by the worker, with the first answer to it
    workspace: dict[int, int] = {}  # of models that guessed in this step: bytes that each has beyond the arena for that


class OpReport(msgspec.Struct, frozen=True, array_like=True):
    """What runs one op of a model."""

    op: str
    implementation: str  # "native.norm_linear"
    covers: tuple[str, ...] = ()  # the primitive ops that it stands for
    num_calls: int = 0  # in one forward pass
    why: str = ""  # it was chosen, or a better one was not
    is_quarantined: bool = False  # it disagreed with its definition, so it does not run


class LoadedModel(msgspec.Struct, frozen=True):
    """What a load left behind."""

    model_id: int
    bytes_loaded: int  # in the arena
    seconds: float
    streamed_bytes: int = 0  # that every forward pass reads again
    stream_rate: float = 0.0  # bytes per second at which the first slots were filled
    host_bytes: int = 0  # of `bytes_loaded`, those that came from the host tier
    copy_s: float = 0.0  # of `seconds`, those in which bytes were copied or read; the rest is kernels and warming up
    num_corrupt: int = 0  # segments whose image in the host tier did not hold its checksum, and which were read from files
    prefill_s: float = 0.0  # per token, of a short input at position 0; 0: the driver does not say
    runs_on: str = ""  # in a few words: what computes it, and why nothing better does
    ops: tuple[OpReport, ...] = ()


class Driver(Protocol):
    """One device group. Every method blocks; errors are those of `drivers.errors`."""

    def probe(self) -> Capabilities:
        """Say what this driver can do here, without taking anything.

        Raises: DriverUnavailable, if the device or a library is missing (says what to install).
        """

    def open(self, spec: OpenSpec, host_fd: int | None) -> None:
        """Take the arena, touch it, and map the host tier; `host_fd` is the driver's once this returns.

        Raises: DeviceOutOfMemory, OptionUnknown, HostTierInvalid.
        """

    def inspect(self, spec: InspectSpec) -> ModelSpec:
        """Read config and headers of a model and say what it needs. Raises: ModelUnsupported, ModelCorrupt; nothing is left behind."""

    def load(self, spec: LoadSpec, progress: Callable[[int, int], None]) -> LoadedModel:
        """Copy the weights to their offsets, build kernels, warm up, and call `progress(bytes_done, bytes_total)` on the way.

        Raises: ModelUnsupported, ModelCorrupt, DeviceOutOfMemory; then the model is not loaded, and its offsets may be lent elsewhere.
        """

    def unload(self, model_id: int) -> None:
        """Forget a model; its offsets and spaces may be lent elsewhere at once. Raises: UnknownModel."""

    def park(self, model_id: int, host_offsets: tuple[int, ...]) -> tuple[int, ...]:
        """Copy the segments of a loaded model to these bytes of the host tier, as a later `LoadSpec` names them.

        Answers the crc32c of each. Steps may run on meanwhile, and the model stays loaded. One that is streamed is streamed from there
        from now on, so its images stay what they are until it is unloaded.
        Raises: UnknownModel; PlanRejected, if the segments leave the host tier; ModelCorrupt, if streamed ones cannot be read.
        """

    def give_back(self, slabs: tuple[int, ...]) -> None:
        """Let the device have the memory of slabs that no model, frame or plan names; asked of drivers that state `gives_back`.

        Raises: PlanRejected.
        """

    def take(self, slabs: tuple[int, ...]) -> None:
        """Have the memory of these slabs again; they hold anything. Raises: DeviceOutOfMemory, PlanRejected; nothing is changed."""

    def apply(self, plan: Plan) -> None:
        """Carry out zeros, moves, late zeros, clears, starts and patches.

        Raises: PageCorrupt, naming the moves whose source did not hold its checksum or key; the others were made, the rows were not
        touched. Any other error means that the device is lost.
        """

    def copied(self) -> CopyTimes:
        """What was copied by moves since this was asked last, and how long it took; after `open`, what a short measurement copied."""

    def step(self, step_idx: int) -> StepResult:
        """Run step `step_idx` of the plan applied last. Raises: DeviceLost."""

    def close(self) -> None:
        """Give everything back. Safe to call twice."""
