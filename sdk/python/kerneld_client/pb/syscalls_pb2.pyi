from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Durability(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DURABILITY_UNSPECIFIED: _ClassVar[Durability]
    DURABILITY_JOURNAL: _ClassVar[Durability]
    DURABILITY_FSYNC: _ClassVar[Durability]
    DURABILITY_NONE: _ClassVar[Durability]

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_INTERACTIVE: _ClassVar[Priority]
    PRIORITY_BATCH: _ClassVar[Priority]
    PRIORITY_IDLE: _ClassVar[Priority]

class ContextState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CONTEXT_STATE_UNSPECIFIED: _ClassVar[ContextState]
    CONTEXT_STATE_NEW: _ClassVar[ContextState]
    CONTEXT_STATE_IDLE: _ClassVar[ContextState]
    CONTEXT_STATE_READY: _ClassVar[ContextState]
    CONTEXT_STATE_RUNNING: _ClassVar[ContextState]
    CONTEXT_STATE_BLOCKED: _ClassVar[ContextState]
    CONTEXT_STATE_SUSPENDED: _ClassVar[ContextState]
    CONTEXT_STATE_FAILED: _ClassVar[ContextState]
    CONTEXT_STATE_FREED: _ClassVar[ContextState]

class Access(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ACCESS_UNSPECIFIED: _ClassVar[Access]
    ACCESS_READ: _ClassVar[Access]
    ACCESS_WRITE: _ClassVar[Access]
    ACCESS_FORK: _ClassVar[Access]

class FinishReason(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FINISH_REASON_UNSPECIFIED: _ClassVar[FinishReason]
    FINISH_REASON_STOP: _ClassVar[FinishReason]
    FINISH_REASON_LENGTH: _ClassVar[FinishReason]
    FINISH_REASON_CANCELLED: _ClassVar[FinishReason]
    FINISH_REASON_DEADLINE: _ClassVar[FinishReason]
    FINISH_REASON_ERROR: _ClassVar[FinishReason]

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_REGISTERED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_RESIDENT: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]

class LimitMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIMIT_MODE_UNSPECIFIED: _ClassVar[LimitMode]
    LIMIT_MODE_SOFT: _ClassVar[LimitMode]
    LIMIT_MODE_HARD: _ClassVar[LimitMode]

class LimitOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LIMIT_OUTCOME_UNSPECIFIED: _ClassVar[LimitOutcome]
    LIMIT_OUTCOME_APPLIED: _ClassVar[LimitOutcome]
    LIMIT_OUTCOME_DEFERRED: _ClassVar[LimitOutcome]

class UsageSpan(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    USAGE_SPAN_UNSPECIFIED: _ClassVar[UsageSpan]
    USAGE_SPAN_HOUR: _ClassVar[UsageSpan]
    USAGE_SPAN_DAY: _ClassVar[UsageSpan]
    USAGE_SPAN_TOTAL: _ClassVar[UsageSpan]
DURABILITY_UNSPECIFIED: Durability
DURABILITY_JOURNAL: Durability
DURABILITY_FSYNC: Durability
DURABILITY_NONE: Durability
PRIORITY_UNSPECIFIED: Priority
PRIORITY_INTERACTIVE: Priority
PRIORITY_BATCH: Priority
PRIORITY_IDLE: Priority
CONTEXT_STATE_UNSPECIFIED: ContextState
CONTEXT_STATE_NEW: ContextState
CONTEXT_STATE_IDLE: ContextState
CONTEXT_STATE_READY: ContextState
CONTEXT_STATE_RUNNING: ContextState
CONTEXT_STATE_BLOCKED: ContextState
CONTEXT_STATE_SUSPENDED: ContextState
CONTEXT_STATE_FAILED: ContextState
CONTEXT_STATE_FREED: ContextState
ACCESS_UNSPECIFIED: Access
ACCESS_READ: Access
ACCESS_WRITE: Access
ACCESS_FORK: Access
FINISH_REASON_UNSPECIFIED: FinishReason
FINISH_REASON_STOP: FinishReason
FINISH_REASON_LENGTH: FinishReason
FINISH_REASON_CANCELLED: FinishReason
FINISH_REASON_DEADLINE: FinishReason
FINISH_REASON_ERROR: FinishReason
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_REGISTERED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_RESIDENT: ModelState
MODEL_STATE_FAILED: ModelState
LIMIT_MODE_UNSPECIFIED: LimitMode
LIMIT_MODE_SOFT: LimitMode
LIMIT_MODE_HARD: LimitMode
LIMIT_OUTCOME_UNSPECIFIED: LimitOutcome
LIMIT_OUTCOME_APPLIED: LimitOutcome
LIMIT_OUTCOME_DEFERRED: LimitOutcome
USAGE_SPAN_UNSPECIFIED: UsageSpan
USAGE_SPAN_HOUR: UsageSpan
USAGE_SPAN_DAY: UsageSpan
USAGE_SPAN_TOTAL: UsageSpan
PERMISSION_FIELD_NUMBER: _ClassVar[int]
permission: _descriptor.FieldDescriptor
MUTATES_FIELD_NUMBER: _ClassVar[int]
mutates: _descriptor.FieldDescriptor

class Grant(_message.Message):
    __slots__ = ("grantee", "access", "expires_at")
    GRANTEE_FIELD_NUMBER: _ClassVar[int]
    ACCESS_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    grantee: str
    access: _containers.RepeatedScalarFieldContainer[Access]
    expires_at: float
    def __init__(self, grantee: _Optional[str] = ..., access: _Optional[_Iterable[_Union[Access, str]]] = ..., expires_at: _Optional[float] = ...) -> None: ...

class PageCounts(_message.Message):
    __slots__ = ("device", "host", "lost", "shared", "disk")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    HOST_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    SHARED_FIELD_NUMBER: _ClassVar[int]
    DISK_FIELD_NUMBER: _ClassVar[int]
    device: int
    host: int
    lost: int
    shared: int
    disk: int
    def __init__(self, device: _Optional[int] = ..., host: _Optional[int] = ..., lost: _Optional[int] = ..., shared: _Optional[int] = ..., disk: _Optional[int] = ...) -> None: ...

class Context(_message.Message):
    __slots__ = ("id", "model", "owner", "tenant", "state", "num_tokens", "max_tokens", "priority", "nice", "durability", "labels", "created_at", "last_used_at", "pages", "kv_bytes", "parent", "active_request", "failure", "grants", "seed", "last_request", "pinned_tokens", "adapter", "sharing_group", "device")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_FIELD_NUMBER: _ClassVar[int]
    PAGES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_REQUEST_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LAST_REQUEST_FIELD_NUMBER: _ClassVar[int]
    PINNED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    SHARING_GROUP_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    id: str
    model: str
    owner: str
    tenant: str
    state: ContextState
    num_tokens: int
    max_tokens: int
    priority: Priority
    nice: int
    durability: Durability
    labels: _containers.ScalarMap[str, str]
    created_at: float
    last_used_at: float
    pages: PageCounts
    kv_bytes: int
    parent: str
    active_request: str
    failure: str
    grants: _containers.RepeatedCompositeFieldContainer[Grant]
    seed: int
    last_request: str
    pinned_tokens: int
    adapter: str
    sharing_group: str
    device: str
    def __init__(self, id: _Optional[str] = ..., model: _Optional[str] = ..., owner: _Optional[str] = ..., tenant: _Optional[str] = ..., state: _Optional[_Union[ContextState, str]] = ..., num_tokens: _Optional[int] = ..., max_tokens: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., nice: _Optional[int] = ..., durability: _Optional[_Union[Durability, str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., created_at: _Optional[float] = ..., last_used_at: _Optional[float] = ..., pages: _Optional[_Union[PageCounts, _Mapping]] = ..., kv_bytes: _Optional[int] = ..., parent: _Optional[str] = ..., active_request: _Optional[str] = ..., failure: _Optional[str] = ..., grants: _Optional[_Iterable[_Union[Grant, _Mapping]]] = ..., seed: _Optional[int] = ..., last_request: _Optional[str] = ..., pinned_tokens: _Optional[int] = ..., adapter: _Optional[str] = ..., sharing_group: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class AllocContextRequest(_message.Message):
    __slots__ = ("request_id", "model", "max_tokens", "priority", "nice", "durability", "labels", "seed", "adapter", "sharing_group")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    DURABILITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    SHARING_GROUP_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    model: str
    max_tokens: int
    priority: Priority
    nice: int
    durability: Durability
    labels: _containers.ScalarMap[str, str]
    seed: int
    adapter: str
    sharing_group: str
    def __init__(self, request_id: _Optional[str] = ..., model: _Optional[str] = ..., max_tokens: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., nice: _Optional[int] = ..., durability: _Optional[_Union[Durability, str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., seed: _Optional[int] = ..., adapter: _Optional[str] = ..., sharing_group: _Optional[str] = ...) -> None: ...

class ForkContextRequest(_message.Message):
    __slots__ = ("request_id", "context_id", "at", "labels", "seed")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    at: int
    labels: _containers.ScalarMap[str, str]
    seed: int
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ..., at: _Optional[int] = ..., labels: _Optional[_Mapping[str, str]] = ..., seed: _Optional[int] = ...) -> None: ...

class FreeContextRequest(_message.Message):
    __slots__ = ("request_id", "context_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ...) -> None: ...

class FreeContextResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatContextRequest(_message.Message):
    __slots__ = ("context_id",)
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    context_id: str
    def __init__(self, context_id: _Optional[str] = ...) -> None: ...

class ListContextsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "all", "model", "tenant")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    all: bool
    model: str
    tenant: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., all: _Optional[bool] = ..., model: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ListContextsResponse(_message.Message):
    __slots__ = ("contexts", "next_page_token")
    CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    contexts: _containers.RepeatedCompositeFieldContainer[Context]
    next_page_token: str
    def __init__(self, contexts: _Optional[_Iterable[_Union[Context, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ReadContextRequest(_message.Message):
    __slots__ = ("context_id", "offset", "limit")
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    context_id: str
    offset: int
    limit: int
    def __init__(self, context_id: _Optional[str] = ..., offset: _Optional[int] = ..., limit: _Optional[int] = ...) -> None: ...

class ReadContextResponse(_message.Message):
    __slots__ = ("offset", "tokens", "text", "num_tokens")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    text: str
    num_tokens: int
    def __init__(self, offset: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class TruncateContextRequest(_message.Message):
    __slots__ = ("request_id", "context_id", "num_tokens")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    num_tokens: int
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ..., num_tokens: _Optional[int] = ...) -> None: ...

class SuspendContextRequest(_message.Message):
    __slots__ = ("request_id", "context_id", "to_disk")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    TO_DISK_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    to_disk: bool
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ..., to_disk: _Optional[bool] = ...) -> None: ...

class ResumeContextRequest(_message.Message):
    __slots__ = ("request_id", "context_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ...) -> None: ...

class SetContextRequest(_message.Message):
    __slots__ = ("request_id", "context_id", "nice", "priority", "labels", "max_tokens", "pinned")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    nice: int
    priority: Priority
    labels: _containers.ScalarMap[str, str]
    max_tokens: int
    pinned: bool
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ..., nice: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., max_tokens: _Optional[int] = ..., pinned: _Optional[bool] = ...) -> None: ...

class GrantContextRequest(_message.Message):
    __slots__ = ("request_id", "context_id", "grant")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    grant: Grant
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ..., grant: _Optional[_Union[Grant, _Mapping]] = ...) -> None: ...

class RevokeContextRequest(_message.Message):
    __slots__ = ("request_id", "context_id", "grantee")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    GRANTEE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    grantee: str
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ..., grantee: _Optional[str] = ...) -> None: ...

class TokenList(_message.Message):
    __slots__ = ("ids",)
    IDS_FIELD_NUMBER: _ClassVar[int]
    ids: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, ids: _Optional[_Iterable[int]] = ...) -> None: ...

class ChatMessage(_message.Message):
    __slots__ = ("role", "content")
    ROLE_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    role: str
    content: str
    def __init__(self, role: _Optional[str] = ..., content: _Optional[str] = ...) -> None: ...

class ChatMessages(_message.Message):
    __slots__ = ("messages",)
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    messages: _containers.RepeatedCompositeFieldContainer[ChatMessage]
    def __init__(self, messages: _Optional[_Iterable[_Union[ChatMessage, _Mapping]]] = ...) -> None: ...

class SamplingParameters(_message.Message):
    __slots__ = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty", "seed", "stop", "stop_token_ids", "ignore_eos", "logprobs", "draft_tokens", "draft_model")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    TOP_P_FIELD_NUMBER: _ClassVar[int]
    MIN_P_FIELD_NUMBER: _ClassVar[int]
    REPETITION_PENALTY_FIELD_NUMBER: _ClassVar[int]
    PRESENCE_PENALTY_FIELD_NUMBER: _ClassVar[int]
    FREQUENCY_PENALTY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    STOP_FIELD_NUMBER: _ClassVar[int]
    STOP_TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    IGNORE_EOS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_MODEL_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int
    stop: _containers.RepeatedScalarFieldContainer[str]
    stop_token_ids: _containers.RepeatedScalarFieldContainer[int]
    ignore_eos: bool
    logprobs: int
    draft_tokens: int
    draft_model: str
    def __init__(self, temperature: _Optional[float] = ..., top_k: _Optional[int] = ..., top_p: _Optional[float] = ..., min_p: _Optional[float] = ..., repetition_penalty: _Optional[float] = ..., presence_penalty: _Optional[float] = ..., frequency_penalty: _Optional[float] = ..., seed: _Optional[int] = ..., stop: _Optional[_Iterable[str]] = ..., stop_token_ids: _Optional[_Iterable[int]] = ..., ignore_eos: _Optional[bool] = ..., logprobs: _Optional[int] = ..., draft_tokens: _Optional[int] = ..., draft_model: _Optional[str] = ...) -> None: ...

class InferRequest(_message.Message):
    __slots__ = ("request_id", "context_id", "text", "tokens", "messages", "max_tokens", "sampling", "deadline_s", "detach_grace_s", "max_queue_s")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    SAMPLING_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_S_FIELD_NUMBER: _ClassVar[int]
    DETACH_GRACE_S_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    text: str
    tokens: TokenList
    messages: ChatMessages
    max_tokens: int
    sampling: SamplingParameters
    deadline_s: float
    detach_grace_s: float
    max_queue_s: float
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[TokenList, _Mapping]] = ..., messages: _Optional[_Union[ChatMessages, _Mapping]] = ..., max_tokens: _Optional[int] = ..., sampling: _Optional[_Union[SamplingParameters, _Mapping]] = ..., deadline_s: _Optional[float] = ..., detach_grace_s: _Optional[float] = ..., max_queue_s: _Optional[float] = ...) -> None: ...

class TopLogprob(_message.Message):
    __slots__ = ("token", "logprob")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    token: int
    logprob: float
    def __init__(self, token: _Optional[int] = ..., logprob: _Optional[float] = ...) -> None: ...

class Logprob(_message.Message):
    __slots__ = ("logprob", "top")
    LOGPROB_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    logprob: float
    top: _containers.RepeatedCompositeFieldContainer[TopLogprob]
    def __init__(self, logprob: _Optional[float] = ..., top: _Optional[_Iterable[_Union[TopLogprob, _Mapping]]] = ...) -> None: ...

class Started(_message.Message):
    __slots__ = ("request", "offset", "input_tokens")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    request: str
    offset: int
    input_tokens: int
    def __init__(self, request: _Optional[str] = ..., offset: _Optional[int] = ..., input_tokens: _Optional[int] = ...) -> None: ...

class Delta(_message.Message):
    __slots__ = ("offset", "tokens", "text", "logprobs")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    offset: int
    tokens: _containers.RepeatedScalarFieldContainer[int]
    text: str
    logprobs: _containers.RepeatedCompositeFieldContainer[Logprob]
    def __init__(self, offset: _Optional[int] = ..., tokens: _Optional[_Iterable[int]] = ..., text: _Optional[str] = ..., logprobs: _Optional[_Iterable[_Union[Logprob, _Mapping]]] = ...) -> None: ...

class RequestUsage(_message.Message):
    __slots__ = ("input_tokens", "cached_tokens", "output_tokens", "pages_restored", "pages_recomputed", "queue_s", "compute_s", "shared_tokens", "drafted_tokens", "accepted_tokens")
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PAGES_RESTORED_FIELD_NUMBER: _ClassVar[int]
    PAGES_RECOMPUTED_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    COMPUTE_S_FIELD_NUMBER: _ClassVar[int]
    SHARED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    pages_restored: int
    pages_recomputed: int
    queue_s: float
    compute_s: float
    shared_tokens: int
    drafted_tokens: int
    accepted_tokens: int
    def __init__(self, input_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., pages_restored: _Optional[int] = ..., pages_recomputed: _Optional[int] = ..., queue_s: _Optional[float] = ..., compute_s: _Optional[float] = ..., shared_tokens: _Optional[int] = ..., drafted_tokens: _Optional[int] = ..., accepted_tokens: _Optional[int] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("reason", "usage", "detail")
    REASON_FIELD_NUMBER: _ClassVar[int]
    USAGE_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: FinishReason
    usage: RequestUsage
    detail: str
    def __init__(self, reason: _Optional[_Union[FinishReason, str]] = ..., usage: _Optional[_Union[RequestUsage, _Mapping]] = ..., detail: _Optional[str] = ...) -> None: ...

class InferEvent(_message.Message):
    __slots__ = ("started", "delta", "finished")
    STARTED_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    started: Started
    delta: Delta
    finished: Finished
    def __init__(self, started: _Optional[_Union[Started, _Mapping]] = ..., delta: _Optional[_Union[Delta, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ...) -> None: ...

class AttachRequest(_message.Message):
    __slots__ = ("context_id", "offset")
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    context_id: str
    offset: int
    def __init__(self, context_id: _Optional[str] = ..., offset: _Optional[int] = ...) -> None: ...

class CancelRequest(_message.Message):
    __slots__ = ("request_id", "context_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ...) -> None: ...

class CancelResponse(_message.Message):
    __slots__ = ("was_active",)
    WAS_ACTIVE_FIELD_NUMBER: _ClassVar[int]
    was_active: bool
    def __init__(self, was_active: _Optional[bool] = ...) -> None: ...

class ScoreRequest(_message.Message):
    __slots__ = ("context_id", "text", "tokens", "top")
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOP_FIELD_NUMBER: _ClassVar[int]
    context_id: str
    text: str
    tokens: TokenList
    top: int
    def __init__(self, context_id: _Optional[str] = ..., text: _Optional[str] = ..., tokens: _Optional[_Union[TokenList, _Mapping]] = ..., top: _Optional[int] = ...) -> None: ...

class ScoreResponse(_message.Message):
    __slots__ = ("tokens", "logprobs", "total")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedScalarFieldContainer[int]
    logprobs: _containers.RepeatedCompositeFieldContainer[Logprob]
    total: float
    def __init__(self, tokens: _Optional[_Iterable[int]] = ..., logprobs: _Optional[_Iterable[_Union[Logprob, _Mapping]]] = ..., total: _Optional[float] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "path", "state", "architecture", "dtype", "bytes", "num_parameters", "max_positions", "vocab_size", "weights_hash", "device", "kv_bytes_per_token", "num_contexts", "failure", "quant", "has_chat_template", "streamed_bytes", "stream_bytes_per_s", "base", "tier", "device_bytes", "host_bytes", "is_pinned", "last_used_at", "num_loads", "kv_quant", "copies")
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_HASH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_PER_TOKEN_FIELD_NUMBER: _ClassVar[int]
    NUM_CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    QUANT_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    STREAMED_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAM_BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    IS_PINNED_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_FIELD_NUMBER: _ClassVar[int]
    NUM_LOADS_FIELD_NUMBER: _ClassVar[int]
    KV_QUANT_FIELD_NUMBER: _ClassVar[int]
    COPIES_FIELD_NUMBER: _ClassVar[int]
    name: str
    path: str
    state: ModelState
    architecture: str
    dtype: str
    bytes: int
    num_parameters: int
    max_positions: int
    vocab_size: int
    weights_hash: str
    device: str
    kv_bytes_per_token: int
    num_contexts: int
    failure: str
    quant: str
    has_chat_template: bool
    streamed_bytes: int
    stream_bytes_per_s: int
    base: str
    tier: str
    device_bytes: int
    host_bytes: int
    is_pinned: bool
    last_used_at: float
    num_loads: int
    kv_quant: str
    copies: _containers.RepeatedCompositeFieldContainer[ModelCopy]
    def __init__(self, name: _Optional[str] = ..., path: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., architecture: _Optional[str] = ..., dtype: _Optional[str] = ..., bytes: _Optional[int] = ..., num_parameters: _Optional[int] = ..., max_positions: _Optional[int] = ..., vocab_size: _Optional[int] = ..., weights_hash: _Optional[str] = ..., device: _Optional[str] = ..., kv_bytes_per_token: _Optional[int] = ..., num_contexts: _Optional[int] = ..., failure: _Optional[str] = ..., quant: _Optional[str] = ..., has_chat_template: _Optional[bool] = ..., streamed_bytes: _Optional[int] = ..., stream_bytes_per_s: _Optional[int] = ..., base: _Optional[str] = ..., tier: _Optional[str] = ..., device_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., is_pinned: _Optional[bool] = ..., last_used_at: _Optional[float] = ..., num_loads: _Optional[int] = ..., kv_quant: _Optional[str] = ..., copies: _Optional[_Iterable[_Union[ModelCopy, _Mapping]]] = ...) -> None: ...

class ModelCopy(_message.Message):
    __slots__ = ("device", "state", "tier", "dtype", "device_bytes", "host_bytes", "streamed_bytes", "failure", "prefill_s")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    STREAMED_BYTES_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    PREFILL_S_FIELD_NUMBER: _ClassVar[int]
    device: str
    state: ModelState
    tier: str
    dtype: str
    device_bytes: int
    host_bytes: int
    streamed_bytes: int
    failure: str
    prefill_s: float
    def __init__(self, device: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., tier: _Optional[str] = ..., dtype: _Optional[str] = ..., device_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., streamed_bytes: _Optional[int] = ..., failure: _Optional[str] = ..., prefill_s: _Optional[float] = ...) -> None: ...

class RegisterModelRequest(_message.Message):
    __slots__ = ("request_id", "name", "path", "max_positions", "quant", "base", "kv_quant")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    QUANT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    KV_QUANT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    path: str
    max_positions: int
    quant: str
    base: str
    kv_quant: str
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ..., path: _Optional[str] = ..., max_positions: _Optional[int] = ..., quant: _Optional[str] = ..., base: _Optional[str] = ..., kv_quant: _Optional[str] = ...) -> None: ...

class LoadModelRequest(_message.Message):
    __slots__ = ("request_id", "name", "path", "max_positions", "quant", "base", "kv_quant", "device")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    MAX_POSITIONS_FIELD_NUMBER: _ClassVar[int]
    QUANT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    KV_QUANT_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    path: str
    max_positions: int
    quant: str
    base: str
    kv_quant: str
    device: str
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ..., path: _Optional[str] = ..., max_positions: _Optional[int] = ..., quant: _Optional[str] = ..., base: _Optional[str] = ..., kv_quant: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("stage", "bytes_done", "bytes_total", "source", "bytes_per_s")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BYTES_PER_S_FIELD_NUMBER: _ClassVar[int]
    stage: str
    bytes_done: int
    bytes_total: int
    source: str
    bytes_per_s: float
    def __init__(self, stage: _Optional[str] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ..., source: _Optional[str] = ..., bytes_per_s: _Optional[float] = ...) -> None: ...

class LoadModelEvent(_message.Message):
    __slots__ = ("progress", "ready")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    progress: LoadProgress
    ready: Model
    def __init__(self, progress: _Optional[_Union[LoadProgress, _Mapping]] = ..., ready: _Optional[_Union[Model, _Mapping]] = ...) -> None: ...

class UnloadModelRequest(_message.Message):
    __slots__ = ("request_id", "name", "device")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    device: str
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class PinModelRequest(_message.Message):
    __slots__ = ("request_id", "name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class RemoveModelRequest(_message.Message):
    __slots__ = ("request_id", "name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class RemoveModelResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatModelRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListModelsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListModelsResponse(_message.Message):
    __slots__ = ("models", "next_page_token")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    next_page_token: str
    def __init__(self, models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class Image(_message.Message):
    __slots__ = ("id", "context_id", "model", "owner", "tenant", "num_tokens", "num_pages", "bytes", "created_at", "name")
    ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    id: str
    context_id: str
    model: str
    owner: str
    tenant: str
    num_tokens: int
    num_pages: int
    bytes: int
    created_at: float
    name: str
    def __init__(self, id: _Optional[str] = ..., context_id: _Optional[str] = ..., model: _Optional[str] = ..., owner: _Optional[str] = ..., tenant: _Optional[str] = ..., num_tokens: _Optional[int] = ..., num_pages: _Optional[int] = ..., bytes: _Optional[int] = ..., created_at: _Optional[float] = ..., name: _Optional[str] = ...) -> None: ...

class CheckpointRequest(_message.Message):
    __slots__ = ("request_id", "context_id", "name", "tokens_only")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    TOKENS_ONLY_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    context_id: str
    name: str
    tokens_only: bool
    def __init__(self, request_id: _Optional[str] = ..., context_id: _Optional[str] = ..., name: _Optional[str] = ..., tokens_only: _Optional[bool] = ...) -> None: ...

class RestoreRequest(_message.Message):
    __slots__ = ("request_id", "image_id", "labels")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    image_id: str
    labels: _containers.ScalarMap[str, str]
    def __init__(self, request_id: _Optional[str] = ..., image_id: _Optional[str] = ..., labels: _Optional[_Mapping[str, str]] = ...) -> None: ...

class RestoreResponse(_message.Message):
    __slots__ = ("context", "pages_restored", "pages_to_recompute", "recompute_reason")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PAGES_RESTORED_FIELD_NUMBER: _ClassVar[int]
    PAGES_TO_RECOMPUTE_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_REASON_FIELD_NUMBER: _ClassVar[int]
    context: Context
    pages_restored: int
    pages_to_recompute: int
    recompute_reason: str
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., pages_restored: _Optional[int] = ..., pages_to_recompute: _Optional[int] = ..., recompute_reason: _Optional[str] = ...) -> None: ...

class ListCheckpointsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "all", "context_id")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    all: bool
    context_id: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., all: _Optional[bool] = ..., context_id: _Optional[str] = ...) -> None: ...

class ListCheckpointsResponse(_message.Message):
    __slots__ = ("images", "next_page_token")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[Image]
    next_page_token: str
    def __init__(self, images: _Optional[_Iterable[_Union[Image, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class VerifyCheckpointRequest(_message.Message):
    __slots__ = ("image_id",)
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    image_id: str
    def __init__(self, image_id: _Optional[str] = ...) -> None: ...

class VerifyCheckpointResponse(_message.Message):
    __slots__ = ("ok", "problems", "bytes_read")
    OK_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    ok: bool
    problems: _containers.RepeatedScalarFieldContainer[str]
    bytes_read: int
    def __init__(self, ok: _Optional[bool] = ..., problems: _Optional[_Iterable[str]] = ..., bytes_read: _Optional[int] = ...) -> None: ...

class DeleteCheckpointRequest(_message.Message):
    __slots__ = ("request_id", "image_id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    IMAGE_ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    image_id: str
    def __init__(self, request_id: _Optional[str] = ..., image_id: _Optional[str] = ...) -> None: ...

class DeleteCheckpointResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Limits(_message.Message):
    __slots__ = ("device_bytes", "host_bytes", "max_contexts", "max_running", "max_queued", "requests_per_minute", "tokens_per_minute", "image_bytes", "device_guarantee_bytes", "host_guarantee_bytes", "disk_bytes", "disk_guarantee_bytes", "loads_per_hour", "modes")
    class ModesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: LimitMode
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[LimitMode, str]] = ...) -> None: ...
    DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_FIELD_NUMBER: _ClassVar[int]
    MAX_QUEUED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_MINUTE_FIELD_NUMBER: _ClassVar[int]
    IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_GUARANTEE_BYTES_FIELD_NUMBER: _ClassVar[int]
    HOST_GUARANTEE_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_GUARANTEE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LOADS_PER_HOUR_FIELD_NUMBER: _ClassVar[int]
    MODES_FIELD_NUMBER: _ClassVar[int]
    device_bytes: int
    host_bytes: int
    max_contexts: int
    max_running: int
    max_queued: int
    requests_per_minute: int
    tokens_per_minute: int
    image_bytes: int
    device_guarantee_bytes: int
    host_guarantee_bytes: int
    disk_bytes: int
    disk_guarantee_bytes: int
    loads_per_hour: int
    modes: _containers.ScalarMap[str, LimitMode]
    def __init__(self, device_bytes: _Optional[int] = ..., host_bytes: _Optional[int] = ..., max_contexts: _Optional[int] = ..., max_running: _Optional[int] = ..., max_queued: _Optional[int] = ..., requests_per_minute: _Optional[int] = ..., tokens_per_minute: _Optional[int] = ..., image_bytes: _Optional[int] = ..., device_guarantee_bytes: _Optional[int] = ..., host_guarantee_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ..., disk_guarantee_bytes: _Optional[int] = ..., loads_per_hour: _Optional[int] = ..., modes: _Optional[_Mapping[str, LimitMode]] = ...) -> None: ...

class Tenant(_message.Message):
    __slots__ = ("path", "weight", "limits", "num_contexts", "num_running", "num_queued", "service", "kv_device_bytes", "kv_host_bytes", "created_at", "input_tokens", "output_tokens", "kv_disk_bytes", "revision", "changes")
    PATH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    NUM_CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_QUEUED_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    KV_DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_HOST_BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    path: str
    weight: int
    limits: Limits
    num_contexts: int
    num_running: int
    num_queued: int
    service: int
    kv_device_bytes: int
    kv_host_bytes: int
    created_at: float
    input_tokens: int
    output_tokens: int
    kv_disk_bytes: int
    revision: str
    changes: _containers.RepeatedCompositeFieldContainer[LimitChange]
    def __init__(self, path: _Optional[str] = ..., weight: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., num_contexts: _Optional[int] = ..., num_running: _Optional[int] = ..., num_queued: _Optional[int] = ..., service: _Optional[int] = ..., kv_device_bytes: _Optional[int] = ..., kv_host_bytes: _Optional[int] = ..., created_at: _Optional[float] = ..., input_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., kv_disk_bytes: _Optional[int] = ..., revision: _Optional[str] = ..., changes: _Optional[_Iterable[_Union[LimitChange, _Mapping]]] = ...) -> None: ...

class Principal(_message.Message):
    __slots__ = ("name", "tenant", "roles", "via")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    VIA_FIELD_NUMBER: _ClassVar[int]
    name: str
    tenant: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    via: str
    def __init__(self, name: _Optional[str] = ..., tenant: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., via: _Optional[str] = ...) -> None: ...

class WhoAmIRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AddTenantRequest(_message.Message):
    __slots__ = ("request_id", "path", "weight", "limits")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    path: str
    weight: int
    limits: Limits
    def __init__(self, request_id: _Optional[str] = ..., path: _Optional[str] = ..., weight: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ...) -> None: ...

class SetTenantRequest(_message.Message):
    __slots__ = ("request_id", "path", "weight", "limits", "revision")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    path: str
    weight: int
    limits: Limits
    revision: str
    def __init__(self, request_id: _Optional[str] = ..., path: _Optional[str] = ..., weight: _Optional[int] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., revision: _Optional[str] = ...) -> None: ...

class ListTenantsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListTenantsResponse(_message.Message):
    __slots__ = ("tenants", "next_page_token")
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenants: _containers.RepeatedCompositeFieldContainer[Tenant]
    next_page_token: str
    def __init__(self, tenants: _Optional[_Iterable[_Union[Tenant, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RemoveTenantRequest(_message.Message):
    __slots__ = ("request_id", "path", "force")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    FORCE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    path: str
    force: bool
    def __init__(self, request_id: _Optional[str] = ..., path: _Optional[str] = ..., force: _Optional[bool] = ...) -> None: ...

class RemoveTenantResponse(_message.Message):
    __slots__ = ("contexts_freed",)
    CONTEXTS_FREED_FIELD_NUMBER: _ClassVar[int]
    contexts_freed: int
    def __init__(self, contexts_freed: _Optional[int] = ...) -> None: ...

class SharingGroup(_message.Message):
    __slots__ = ("name", "members", "created_at", "num_contexts")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    NUM_CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    members: _containers.RepeatedScalarFieldContainer[str]
    created_at: float
    num_contexts: int
    def __init__(self, name: _Optional[str] = ..., members: _Optional[_Iterable[str]] = ..., created_at: _Optional[float] = ..., num_contexts: _Optional[int] = ...) -> None: ...

class AddSharingGroupRequest(_message.Message):
    __slots__ = ("request_id", "name", "members")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ..., members: _Optional[_Iterable[str]] = ...) -> None: ...

class SetSharingGroupRequest(_message.Message):
    __slots__ = ("request_id", "name", "members")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    members: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ..., members: _Optional[_Iterable[str]] = ...) -> None: ...

class RemoveSharingGroupRequest(_message.Message):
    __slots__ = ("request_id", "name")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    name: str
    def __init__(self, request_id: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class RemoveSharingGroupResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListSharingGroupsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListSharingGroupsResponse(_message.Message):
    __slots__ = ("groups", "next_page_token")
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    groups: _containers.RepeatedCompositeFieldContainer[SharingGroup]
    next_page_token: str
    def __init__(self, groups: _Optional[_Iterable[_Union[SharingGroup, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class AddTokenRequest(_message.Message):
    __slots__ = ("request_id", "tenant", "name", "roles", "lifetime_s")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    LIFETIME_S_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    tenant: str
    name: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    lifetime_s: float
    def __init__(self, request_id: _Optional[str] = ..., tenant: _Optional[str] = ..., name: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., lifetime_s: _Optional[float] = ...) -> None: ...

class NewToken(_message.Message):
    __slots__ = ("id", "token", "tenant", "expires_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    tenant: str
    expires_at: float
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ..., tenant: _Optional[str] = ..., expires_at: _Optional[float] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("id", "tenant", "name", "roles", "created_at", "expires_at", "last_used_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ROLES_FIELD_NUMBER: _ClassVar[int]
    CREATED_AT_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    tenant: str
    name: str
    roles: _containers.RepeatedScalarFieldContainer[str]
    created_at: float
    expires_at: float
    last_used_at: float
    def __init__(self, id: _Optional[str] = ..., tenant: _Optional[str] = ..., name: _Optional[str] = ..., roles: _Optional[_Iterable[str]] = ..., created_at: _Optional[float] = ..., expires_at: _Optional[float] = ..., last_used_at: _Optional[float] = ...) -> None: ...

class ListTokensRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "tenant")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    tenant: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., tenant: _Optional[str] = ...) -> None: ...

class ListTokensResponse(_message.Message):
    __slots__ = ("tokens", "next_page_token")
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tokens: _containers.RepeatedCompositeFieldContainer[Token]
    next_page_token: str
    def __init__(self, tokens: _Optional[_Iterable[_Union[Token, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class RemoveTokenRequest(_message.Message):
    __slots__ = ("request_id", "id")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    id: str
    def __init__(self, request_id: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class RemoveTokenResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DrainRequest(_message.Message):
    __slots__ = ("request_id", "timeout_s")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_S_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    timeout_s: float
    def __init__(self, request_id: _Optional[str] = ..., timeout_s: _Optional[float] = ...) -> None: ...

class DrainResponse(_message.Message):
    __slots__ = ("finished", "left_for_next_start")
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    LEFT_FOR_NEXT_START_FIELD_NUMBER: _ClassVar[int]
    finished: int
    left_for_next_start: int
    def __init__(self, finished: _Optional[int] = ..., left_for_next_start: _Optional[int] = ...) -> None: ...

class TopRequest(_message.Message):
    __slots__ = ("interval_s", "count")
    INTERVAL_S_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    interval_s: float
    count: int
    def __init__(self, interval_s: _Optional[float] = ..., count: _Optional[int] = ...) -> None: ...

class TierUse(_message.Message):
    __slots__ = ("tier", "total_bytes", "free_bytes", "weights_bytes", "kv_bytes", "device")
    class KvBytesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TIER_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_BYTES_FIELD_NUMBER: _ClassVar[int]
    KV_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    tier: str
    total_bytes: int
    free_bytes: int
    weights_bytes: int
    kv_bytes: _containers.ScalarMap[str, int]
    device: str
    def __init__(self, tier: _Optional[str] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., weights_bytes: _Optional[int] = ..., kv_bytes: _Optional[_Mapping[str, int]] = ..., device: _Optional[str] = ...) -> None: ...

class WorkerStatus(_message.Message):
    __slots__ = ("device", "driver", "pid", "state", "restarts", "busy")
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    BUSY_FIELD_NUMBER: _ClassVar[int]
    device: str
    driver: str
    pid: int
    state: str
    restarts: int
    busy: float
    def __init__(self, device: _Optional[str] = ..., driver: _Optional[str] = ..., pid: _Optional[int] = ..., state: _Optional[str] = ..., restarts: _Optional[int] = ..., busy: _Optional[float] = ...) -> None: ...

class TopFrame(_message.Message):
    __slots__ = ("at", "uptime_s", "running", "waiting", "num_contexts", "tokens_per_s", "prefill_tokens_per_s", "tiers", "tenants", "workers", "models", "boot_generation", "activities", "recent_s", "jain")
    AT_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    PREFILL_TOKENS_PER_S_FIELD_NUMBER: _ClassVar[int]
    TIERS_FIELD_NUMBER: _ClassVar[int]
    TENANTS_FIELD_NUMBER: _ClassVar[int]
    WORKERS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    BOOT_GENERATION_FIELD_NUMBER: _ClassVar[int]
    ACTIVITIES_FIELD_NUMBER: _ClassVar[int]
    RECENT_S_FIELD_NUMBER: _ClassVar[int]
    JAIN_FIELD_NUMBER: _ClassVar[int]
    at: float
    uptime_s: float
    running: int
    waiting: int
    num_contexts: int
    tokens_per_s: float
    prefill_tokens_per_s: float
    tiers: _containers.RepeatedCompositeFieldContainer[TierUse]
    tenants: _containers.RepeatedCompositeFieldContainer[Tenant]
    workers: _containers.RepeatedCompositeFieldContainer[WorkerStatus]
    models: _containers.RepeatedCompositeFieldContainer[Model]
    boot_generation: int
    activities: _containers.RepeatedCompositeFieldContainer[TenantActivity]
    recent_s: float
    jain: float
    def __init__(self, at: _Optional[float] = ..., uptime_s: _Optional[float] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., num_contexts: _Optional[int] = ..., tokens_per_s: _Optional[float] = ..., prefill_tokens_per_s: _Optional[float] = ..., tiers: _Optional[_Iterable[_Union[TierUse, _Mapping]]] = ..., tenants: _Optional[_Iterable[_Union[Tenant, _Mapping]]] = ..., workers: _Optional[_Iterable[_Union[WorkerStatus, _Mapping]]] = ..., models: _Optional[_Iterable[_Union[Model, _Mapping]]] = ..., boot_generation: _Optional[int] = ..., activities: _Optional[_Iterable[_Union[TenantActivity, _Mapping]]] = ..., recent_s: _Optional[float] = ..., jain: _Optional[float] = ...) -> None: ...

class TenantActivity(_message.Message):
    __slots__ = ("tenant", "weight", "factor_milli", "recent_us", "recent_share", "owed_us", "num_waiting", "num_running", "num_contexts", "kv_device_bytes")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    FACTOR_MILLI_FIELD_NUMBER: _ClassVar[int]
    RECENT_US_FIELD_NUMBER: _ClassVar[int]
    RECENT_SHARE_FIELD_NUMBER: _ClassVar[int]
    OWED_US_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    NUM_CONTEXTS_FIELD_NUMBER: _ClassVar[int]
    KV_DEVICE_BYTES_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    weight: int
    factor_milli: int
    recent_us: int
    recent_share: float
    owed_us: int
    num_waiting: int
    num_running: int
    num_contexts: int
    kv_device_bytes: int
    def __init__(self, tenant: _Optional[str] = ..., weight: _Optional[int] = ..., factor_milli: _Optional[int] = ..., recent_us: _Optional[int] = ..., recent_share: _Optional[float] = ..., owed_us: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_running: _Optional[int] = ..., num_contexts: _Optional[int] = ..., kv_device_bytes: _Optional[int] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("follow", "since")
    FOLLOW_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    follow: bool
    since: int
    def __init__(self, follow: _Optional[bool] = ..., since: _Optional[int] = ...) -> None: ...

class Event(_message.Message):
    __slots__ = ("sequence", "at", "name", "facts")
    class FactsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    AT_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    FACTS_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    at: float
    name: str
    facts: _containers.ScalarMap[str, str]
    def __init__(self, sequence: _Optional[int] = ..., at: _Optional[float] = ..., name: _Optional[str] = ..., facts: _Optional[_Mapping[str, str]] = ...) -> None: ...

class Holding(_message.Message):
    __slots__ = ("tier", "owner", "kind", "name", "state", "bytes", "device")
    TIER_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    tier: str
    owner: str
    kind: str
    name: str
    state: str
    bytes: int
    device: str
    def __init__(self, tier: _Optional[str] = ..., owner: _Optional[str] = ..., kind: _Optional[str] = ..., name: _Optional[str] = ..., state: _Optional[str] = ..., bytes: _Optional[int] = ..., device: _Optional[str] = ...) -> None: ...

class LimitChange(_message.Message):
    __slots__ = ("tier", "field", "before", "after", "outcome", "awaited_bytes", "awaited_from")
    TIER_FIELD_NUMBER: _ClassVar[int]
    FIELD_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    AWAITED_BYTES_FIELD_NUMBER: _ClassVar[int]
    AWAITED_FROM_FIELD_NUMBER: _ClassVar[int]
    tier: str
    field: str
    before: int
    after: int
    outcome: LimitOutcome
    awaited_bytes: int
    awaited_from: _containers.RepeatedCompositeFieldContainer[Holding]
    def __init__(self, tier: _Optional[str] = ..., field: _Optional[str] = ..., before: _Optional[int] = ..., after: _Optional[int] = ..., outcome: _Optional[_Union[LimitOutcome, str]] = ..., awaited_bytes: _Optional[int] = ..., awaited_from: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ...) -> None: ...

class ReadMemoryRequest(_message.Message):
    __slots__ = ("num_decisions",)
    NUM_DECISIONS_FIELD_NUMBER: _ClassVar[int]
    num_decisions: int
    def __init__(self, num_decisions: _Optional[int] = ...) -> None: ...

class TierTotal(_message.Message):
    __slots__ = ("tier", "total_bytes", "free_bytes", "guaranteed_bytes", "kinds", "device")
    class KindsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    TIER_FIELD_NUMBER: _ClassVar[int]
    TOTAL_BYTES_FIELD_NUMBER: _ClassVar[int]
    FREE_BYTES_FIELD_NUMBER: _ClassVar[int]
    GUARANTEED_BYTES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    tier: str
    total_bytes: int
    free_bytes: int
    guaranteed_bytes: int
    kinds: _containers.ScalarMap[str, int]
    device: str
    def __init__(self, tier: _Optional[str] = ..., total_bytes: _Optional[int] = ..., free_bytes: _Optional[int] = ..., guaranteed_bytes: _Optional[int] = ..., kinds: _Optional[_Mapping[str, int]] = ..., device: _Optional[str] = ...) -> None: ...

class TierAccount(_message.Message):
    __slots__ = ("owner", "tier", "kinds", "used_bytes", "guarantee_bytes", "limit_bytes", "borrowed_bytes", "excess_bytes", "weight", "pinned_bytes", "device")
    class KindsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    OWNER_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    USED_BYTES_FIELD_NUMBER: _ClassVar[int]
    GUARANTEE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    BORROWED_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXCESS_BYTES_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    PINNED_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    owner: str
    tier: str
    kinds: _containers.ScalarMap[str, int]
    used_bytes: int
    guarantee_bytes: int
    limit_bytes: int
    borrowed_bytes: int
    excess_bytes: int
    weight: int
    pinned_bytes: int
    device: str
    def __init__(self, owner: _Optional[str] = ..., tier: _Optional[str] = ..., kinds: _Optional[_Mapping[str, int]] = ..., used_bytes: _Optional[int] = ..., guarantee_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., borrowed_bytes: _Optional[int] = ..., excess_bytes: _Optional[int] = ..., weight: _Optional[int] = ..., pinned_bytes: _Optional[int] = ..., device: _Optional[str] = ...) -> None: ...

class PathDecision(_message.Message):
    __slots__ = ("at", "model", "context_id", "num_tokens", "keep_tokens", "chosen", "cost_s", "alternative", "alternative_cost_s", "measured_s")
    AT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    NUM_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KEEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CHOSEN_FIELD_NUMBER: _ClassVar[int]
    COST_S_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_FIELD_NUMBER: _ClassVar[int]
    ALTERNATIVE_COST_S_FIELD_NUMBER: _ClassVar[int]
    MEASURED_S_FIELD_NUMBER: _ClassVar[int]
    at: float
    model: str
    context_id: str
    num_tokens: int
    keep_tokens: int
    chosen: str
    cost_s: float
    alternative: str
    alternative_cost_s: float
    measured_s: float
    def __init__(self, at: _Optional[float] = ..., model: _Optional[str] = ..., context_id: _Optional[str] = ..., num_tokens: _Optional[int] = ..., keep_tokens: _Optional[int] = ..., chosen: _Optional[str] = ..., cost_s: _Optional[float] = ..., alternative: _Optional[str] = ..., alternative_cost_s: _Optional[float] = ..., measured_s: _Optional[float] = ...) -> None: ...

class Memory(_message.Message):
    __slots__ = ("tiers", "accounts", "decisions")
    TIERS_FIELD_NUMBER: _ClassVar[int]
    ACCOUNTS_FIELD_NUMBER: _ClassVar[int]
    DECISIONS_FIELD_NUMBER: _ClassVar[int]
    tiers: _containers.RepeatedCompositeFieldContainer[TierTotal]
    accounts: _containers.RepeatedCompositeFieldContainer[TierAccount]
    decisions: _containers.RepeatedCompositeFieldContainer[PathDecision]
    def __init__(self, tiers: _Optional[_Iterable[_Union[TierTotal, _Mapping]]] = ..., accounts: _Optional[_Iterable[_Union[TierAccount, _Mapping]]] = ..., decisions: _Optional[_Iterable[_Union[PathDecision, _Mapping]]] = ...) -> None: ...

class ListDevicesRequest(_message.Message):
    __slots__ = ("device",)
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    device: str
    def __init__(self, device: _Optional[str] = ...) -> None: ...

class ListDevicesResponse(_message.Message):
    __slots__ = ("devices",)
    DEVICES_FIELD_NUMBER: _ClassVar[int]
    devices: _containers.RepeatedCompositeFieldContainer[Device]
    def __init__(self, devices: _Optional[_Iterable[_Union[Device, _Mapping]]] = ...) -> None: ...

class Device(_message.Message):
    __slots__ = ("name", "state", "driver", "version", "device_name", "memory_bytes", "dtypes", "quantizations", "isa", "is_batch_invariant", "models", "problem", "arena_bytes")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    DRIVER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DEVICE_NAME_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DTYPES_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATIONS_FIELD_NUMBER: _ClassVar[int]
    ISA_FIELD_NUMBER: _ClassVar[int]
    IS_BATCH_INVARIANT_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    ARENA_BYTES_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    driver: str
    version: str
    device_name: str
    memory_bytes: int
    dtypes: _containers.RepeatedScalarFieldContainer[str]
    quantizations: _containers.RepeatedScalarFieldContainer[str]
    isa: str
    is_batch_invariant: bool
    models: _containers.RepeatedCompositeFieldContainer[DeviceModel]
    problem: str
    arena_bytes: int
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., driver: _Optional[str] = ..., version: _Optional[str] = ..., device_name: _Optional[str] = ..., memory_bytes: _Optional[int] = ..., dtypes: _Optional[_Iterable[str]] = ..., quantizations: _Optional[_Iterable[str]] = ..., isa: _Optional[str] = ..., is_batch_invariant: _Optional[bool] = ..., models: _Optional[_Iterable[_Union[DeviceModel, _Mapping]]] = ..., problem: _Optional[str] = ..., arena_bytes: _Optional[int] = ...) -> None: ...

class DeviceModel(_message.Message):
    __slots__ = ("model", "runs_on", "ops", "quant", "kv_quant")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    RUNS_ON_FIELD_NUMBER: _ClassVar[int]
    OPS_FIELD_NUMBER: _ClassVar[int]
    QUANT_FIELD_NUMBER: _ClassVar[int]
    KV_QUANT_FIELD_NUMBER: _ClassVar[int]
    model: str
    runs_on: str
    ops: _containers.RepeatedCompositeFieldContainer[OpReport]
    quant: str
    kv_quant: str
    def __init__(self, model: _Optional[str] = ..., runs_on: _Optional[str] = ..., ops: _Optional[_Iterable[_Union[OpReport, _Mapping]]] = ..., quant: _Optional[str] = ..., kv_quant: _Optional[str] = ...) -> None: ...

class OpReport(_message.Message):
    __slots__ = ("op", "implementation", "covers", "num_calls", "why", "is_quarantined")
    OP_FIELD_NUMBER: _ClassVar[int]
    IMPLEMENTATION_FIELD_NUMBER: _ClassVar[int]
    COVERS_FIELD_NUMBER: _ClassVar[int]
    NUM_CALLS_FIELD_NUMBER: _ClassVar[int]
    WHY_FIELD_NUMBER: _ClassVar[int]
    IS_QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    op: str
    implementation: str
    covers: _containers.RepeatedScalarFieldContainer[str]
    num_calls: int
    why: str
    is_quarantined: bool
    def __init__(self, op: _Optional[str] = ..., implementation: _Optional[str] = ..., covers: _Optional[_Iterable[str]] = ..., num_calls: _Optional[int] = ..., why: _Optional[str] = ..., is_quarantined: _Optional[bool] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("context_id", "model", "request")
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    context_id: str
    model: str
    request: str
    def __init__(self, context_id: _Optional[str] = ..., model: _Optional[str] = ..., request: _Optional[str] = ...) -> None: ...

class Placement(_message.Message):
    __slots__ = ("tier", "bytes", "num_pages", "device")
    TIER_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    NUM_PAGES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    tier: str
    bytes: int
    num_pages: int
    device: str
    def __init__(self, tier: _Optional[str] = ..., bytes: _Optional[int] = ..., num_pages: _Optional[int] = ..., device: _Optional[str] = ...) -> None: ...

class Obstacle(_message.Message):
    __slots__ = ("code", "text", "tier", "owner", "needed_bytes", "available_bytes", "limit_bytes", "device")
    CODE_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    NEEDED_BYTES_FIELD_NUMBER: _ClassVar[int]
    AVAILABLE_BYTES_FIELD_NUMBER: _ClassVar[int]
    LIMIT_BYTES_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    code: str
    text: str
    tier: str
    owner: str
    needed_bytes: int
    available_bytes: int
    limit_bytes: int
    device: str
    def __init__(self, code: _Optional[str] = ..., text: _Optional[str] = ..., tier: _Optional[str] = ..., owner: _Optional[str] = ..., needed_bytes: _Optional[int] = ..., available_bytes: _Optional[int] = ..., limit_bytes: _Optional[int] = ..., device: _Optional[str] = ...) -> None: ...

class Remedy(_message.Message):
    __slots__ = ("action", "tier", "bytes", "owner", "subject", "text", "is_part")
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TIER_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    IS_PART_FIELD_NUMBER: _ClassVar[int]
    action: str
    tier: str
    bytes: int
    owner: str
    subject: str
    text: str
    is_part: bool
    def __init__(self, action: _Optional[str] = ..., tier: _Optional[str] = ..., bytes: _Optional[int] = ..., owner: _Optional[str] = ..., subject: _Optional[str] = ..., text: _Optional[str] = ..., is_part: _Optional[bool] = ...) -> None: ...

class QueuePlace(_message.Message):
    __slots__ = ("position", "tenant_waiting", "waiting", "running", "service")
    POSITION_FIELD_NUMBER: _ClassVar[int]
    TENANT_WAITING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    SERVICE_FIELD_NUMBER: _ClassVar[int]
    position: int
    tenant_waiting: int
    waiting: int
    running: int
    service: int
    def __init__(self, position: _Optional[int] = ..., tenant_waiting: _Optional[int] = ..., waiting: _Optional[int] = ..., running: _Optional[int] = ..., service: _Optional[int] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("subject", "state", "summary", "placements", "obstacles", "holders", "remedies", "queue", "outlook")
    SUBJECT_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    PLACEMENTS_FIELD_NUMBER: _ClassVar[int]
    OBSTACLES_FIELD_NUMBER: _ClassVar[int]
    HOLDERS_FIELD_NUMBER: _ClassVar[int]
    REMEDIES_FIELD_NUMBER: _ClassVar[int]
    QUEUE_FIELD_NUMBER: _ClassVar[int]
    OUTLOOK_FIELD_NUMBER: _ClassVar[int]
    subject: str
    state: str
    summary: str
    placements: _containers.RepeatedCompositeFieldContainer[Placement]
    obstacles: _containers.RepeatedCompositeFieldContainer[Obstacle]
    holders: _containers.RepeatedCompositeFieldContainer[Holding]
    remedies: _containers.RepeatedCompositeFieldContainer[Remedy]
    queue: QueuePlace
    outlook: Outlook
    def __init__(self, subject: _Optional[str] = ..., state: _Optional[str] = ..., summary: _Optional[str] = ..., placements: _Optional[_Iterable[_Union[Placement, _Mapping]]] = ..., obstacles: _Optional[_Iterable[_Union[Obstacle, _Mapping]]] = ..., holders: _Optional[_Iterable[_Union[Holding, _Mapping]]] = ..., remedies: _Optional[_Iterable[_Union[Remedy, _Mapping]]] = ..., queue: _Optional[_Union[QueuePlace, _Mapping]] = ..., outlook: _Optional[_Union[Outlook, _Mapping]] = ...) -> None: ...

class Contender(_message.Message):
    __slots__ = ("tenant", "is_own", "weight", "factor_milli", "lag_us", "service_us", "num_waiting", "num_running")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    IS_OWN_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    FACTOR_MILLI_FIELD_NUMBER: _ClassVar[int]
    LAG_US_FIELD_NUMBER: _ClassVar[int]
    SERVICE_US_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    is_own: bool
    weight: int
    factor_milli: int
    lag_us: int
    service_us: int
    num_waiting: int
    num_running: int
    def __init__(self, tenant: _Optional[str] = ..., is_own: _Optional[bool] = ..., weight: _Optional[int] = ..., factor_milli: _Optional[int] = ..., lag_us: _Optional[int] = ..., service_us: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_running: _Optional[int] = ...) -> None: ...

class StartEstimate(_message.Message):
    __slots__ = ("seconds", "error", "num_judged")
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    NUM_JUDGED_FIELD_NUMBER: _ClassVar[int]
    seconds: float
    error: float
    num_judged: int
    def __init__(self, seconds: _Optional[float] = ..., error: _Optional[float] = ..., num_judged: _Optional[int] = ...) -> None: ...

class Outlook(_message.Message):
    __slots__ = ("request", "context_id", "tenant", "model", "state", "priority", "nice", "arrived_at", "queue_s", "position", "is_position_least", "tenant_position", "contenders", "estimate", "deferred_until", "deadline", "num_preemptions", "output_tokens", "first_token_s", "reason", "detail", "ended_at", "queue_until")
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    NICE_FIELD_NUMBER: _ClassVar[int]
    ARRIVED_AT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_S_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    IS_POSITION_LEAST_FIELD_NUMBER: _ClassVar[int]
    TENANT_POSITION_FIELD_NUMBER: _ClassVar[int]
    CONTENDERS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATE_FIELD_NUMBER: _ClassVar[int]
    DEFERRED_UNTIL_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_FIELD_NUMBER: _ClassVar[int]
    NUM_PREEMPTIONS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    FIRST_TOKEN_S_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    ENDED_AT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_UNTIL_FIELD_NUMBER: _ClassVar[int]
    request: str
    context_id: str
    tenant: str
    model: str
    state: str
    priority: str
    nice: int
    arrived_at: float
    queue_s: float
    position: int
    is_position_least: bool
    tenant_position: int
    contenders: _containers.RepeatedCompositeFieldContainer[Contender]
    estimate: StartEstimate
    deferred_until: float
    deadline: float
    num_preemptions: int
    output_tokens: int
    first_token_s: float
    reason: str
    detail: str
    ended_at: float
    queue_until: float
    def __init__(self, request: _Optional[str] = ..., context_id: _Optional[str] = ..., tenant: _Optional[str] = ..., model: _Optional[str] = ..., state: _Optional[str] = ..., priority: _Optional[str] = ..., nice: _Optional[int] = ..., arrived_at: _Optional[float] = ..., queue_s: _Optional[float] = ..., position: _Optional[int] = ..., is_position_least: _Optional[bool] = ..., tenant_position: _Optional[int] = ..., contenders: _Optional[_Iterable[_Union[Contender, _Mapping]]] = ..., estimate: _Optional[_Union[StartEstimate, _Mapping]] = ..., deferred_until: _Optional[float] = ..., deadline: _Optional[float] = ..., num_preemptions: _Optional[int] = ..., output_tokens: _Optional[int] = ..., first_token_s: _Optional[float] = ..., reason: _Optional[str] = ..., detail: _Optional[str] = ..., ended_at: _Optional[float] = ..., queue_until: _Optional[float] = ...) -> None: ...

class ListRequestsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "all", "tenant")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ALL_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    all: bool
    tenant: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., all: _Optional[bool] = ..., tenant: _Optional[str] = ...) -> None: ...

class ListRequestsResponse(_message.Message):
    __slots__ = ("requests", "next_page_token")
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    requests: _containers.RepeatedCompositeFieldContainer[Outlook]
    next_page_token: str
    def __init__(self, requests: _Optional[_Iterable[_Union[Outlook, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class FsckRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PartChecked(_message.Message):
    __slots__ = ("part", "num_checked", "unit", "bytes_read", "problems")
    PART_FIELD_NUMBER: _ClassVar[int]
    NUM_CHECKED_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    BYTES_READ_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    part: str
    num_checked: int
    unit: str
    bytes_read: int
    problems: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, part: _Optional[str] = ..., num_checked: _Optional[int] = ..., unit: _Optional[str] = ..., bytes_read: _Optional[int] = ..., problems: _Optional[_Iterable[str]] = ...) -> None: ...

class UsageRequest(_message.Message):
    __slots__ = ("tenant", "since", "until", "span", "page_size", "page_token")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    UNTIL_FIELD_NUMBER: _ClassVar[int]
    SPAN_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    since: float
    until: float
    span: UsageSpan
    page_size: int
    page_token: str
    def __init__(self, tenant: _Optional[str] = ..., since: _Optional[float] = ..., until: _Optional[float] = ..., span: _Optional[_Union[UsageSpan, str]] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class UsageRecord(_message.Message):
    __slots__ = ("tenant", "start", "is_removed", "requests", "input_tokens", "cached_tokens", "output_tokens", "device_us", "service_us", "device_page_ms", "host_page_ms", "disk_page_ms", "loads", "load_us")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    IS_REMOVED_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    CACHED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    OUTPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    DEVICE_US_FIELD_NUMBER: _ClassVar[int]
    SERVICE_US_FIELD_NUMBER: _ClassVar[int]
    DEVICE_PAGE_MS_FIELD_NUMBER: _ClassVar[int]
    HOST_PAGE_MS_FIELD_NUMBER: _ClassVar[int]
    DISK_PAGE_MS_FIELD_NUMBER: _ClassVar[int]
    LOADS_FIELD_NUMBER: _ClassVar[int]
    LOAD_US_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    start: float
    is_removed: bool
    requests: int
    input_tokens: int
    cached_tokens: int
    output_tokens: int
    device_us: int
    service_us: int
    device_page_ms: int
    host_page_ms: int
    disk_page_ms: int
    loads: int
    load_us: int
    def __init__(self, tenant: _Optional[str] = ..., start: _Optional[float] = ..., is_removed: _Optional[bool] = ..., requests: _Optional[int] = ..., input_tokens: _Optional[int] = ..., cached_tokens: _Optional[int] = ..., output_tokens: _Optional[int] = ..., device_us: _Optional[int] = ..., service_us: _Optional[int] = ..., device_page_ms: _Optional[int] = ..., host_page_ms: _Optional[int] = ..., disk_page_ms: _Optional[int] = ..., loads: _Optional[int] = ..., load_us: _Optional[int] = ...) -> None: ...

class UsageResponse(_message.Message):
    __slots__ = ("records", "next_page_token")
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    records: _containers.RepeatedCompositeFieldContainer[UsageRecord]
    next_page_token: str
    def __init__(self, records: _Optional[_Iterable[_Union[UsageRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class SharesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ShareRecord(_message.Message):
    __slots__ = ("tenant", "weight", "share", "machine_share", "used_share", "decayed_us", "factor_milli", "effective_share", "effective_machine_share", "service_us", "num_waiting", "num_running")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    SHARE_FIELD_NUMBER: _ClassVar[int]
    MACHINE_SHARE_FIELD_NUMBER: _ClassVar[int]
    USED_SHARE_FIELD_NUMBER: _ClassVar[int]
    DECAYED_US_FIELD_NUMBER: _ClassVar[int]
    FACTOR_MILLI_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_SHARE_FIELD_NUMBER: _ClassVar[int]
    EFFECTIVE_MACHINE_SHARE_FIELD_NUMBER: _ClassVar[int]
    SERVICE_US_FIELD_NUMBER: _ClassVar[int]
    NUM_WAITING_FIELD_NUMBER: _ClassVar[int]
    NUM_RUNNING_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    weight: int
    share: float
    machine_share: float
    used_share: float
    decayed_us: int
    factor_milli: int
    effective_share: float
    effective_machine_share: float
    service_us: int
    num_waiting: int
    num_running: int
    def __init__(self, tenant: _Optional[str] = ..., weight: _Optional[int] = ..., share: _Optional[float] = ..., machine_share: _Optional[float] = ..., used_share: _Optional[float] = ..., decayed_us: _Optional[int] = ..., factor_milli: _Optional[int] = ..., effective_share: _Optional[float] = ..., effective_machine_share: _Optional[float] = ..., service_us: _Optional[int] = ..., num_waiting: _Optional[int] = ..., num_running: _Optional[int] = ...) -> None: ...

class SharesResponse(_message.Message):
    __slots__ = ("shares", "next_page_token")
    SHARES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    shares: _containers.RepeatedCompositeFieldContainer[ShareRecord]
    next_page_token: str
    def __init__(self, shares: _Optional[_Iterable[_Union[ShareRecord, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...
