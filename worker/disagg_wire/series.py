"""PURE: The Prometheus series of all processes: their names as they are exposed, and their
labels.
"""

# Labels that distinguish the series that the autoscaler reads, in the order of their values in the
# names that it gives to samples.
POOL = "pool"
ROLE = "role"
OBJECTIVE = "objective"
WITHIN = "within"
PART = "part"
KIND = "kind"
SOURCE = "source"
READ_LABELS = (OBJECTIVE, WITHIN, PART, KIND, POOL, ROLE, SOURCE)

# Labels of the other series.
ENDPOINT = "endpoint"
CODE = "code"
PATH = "path"
REASON = "reason"
LIMIT = "limit"
TYPE = "type"
STATUS = "status"
STATE = "state"
DIRECTION = "direction"
RESULT = "result"
NAMESPACE = "namespace"
# As scrape configurations name it on the series of routers and workers, so that all join.
DEPLOYMENT = "disagg_deployment"
NAME = "name"
COMPONENT = "component"
VERSION = "version"
PYTHON = "python"
TRANSPORT = "transport"
EVIDENCE = "evidence"
WHAT = "what"
OUTCOME = "outcome"
BACKEND = "backend"
STAGE = "stage"
PHASE = "phase"
LIMIT = "limit"
INTERFACE = "interface"

# Values of OBJECTIVE, WITHIN, PART and KIND. The uncached requests are those that are work for the
# prefill workers.
TTFT, TPOT = "ttft", "tpot"
TRUE, FALSE = "true", "false"
PROMPT, UNCACHED = "prompt", "uncached"
OUTPUT, CONTEXT = "output", "context"
# Values of WHAT.
SEED, PENALTY = "seed", "penalty"
# Values of REASON, of the path of a request: why its prompt was prefilled where it was.
SHIPPED, FEW_MISSING, NO_PREFILL = "shipped", "few_tokens_missing", "no_prefill_worker"
BOTH_ROLES, ONE_TOKEN = "both_roles", "one_token"
# Values of REASON, of workers that are given up: no beats, a step that does not end, missed polls.
WORKER_SILENT, WORKER_HUNG, WORKER_LOST = "worker_silent", "worker_hung", "worker_lost"
# Values of KIND, and of STATE: what a breaker is of, and what it lets pass.
WORKER, PAIR = "worker", "pair"
OPEN, HALF_OPEN, CLOSED = "open", "half_open", "closed"
# Values of BACKEND: a service beside the deployment, or its own pools.
UPSTREAM, POOLS = "upstream", "pools"
# Values of OUTCOME.
SERVED, REFUSED, EXPIRED, CANCELLED = "served", "refused", "expired", "cancelled"
COMPLETE, TIMED_OUT, KILLED, UNANSWERED = "complete", "timed_out", "killed", "unanswered"
# Values of OUTCOME, of generations: `shed` was refused because there was no room.
COMPLETED, SHED = "completed", "shed"
FAILED_BEFORE_FIRST, FAILED_AFTER_FIRST = "failed_before_first", "failed_after_first"
LEFT_BEFORE_FIRST, LEFT_AFTER_FIRST = "left_before_first", "left_after_first"
GENERATION_OUTCOMES = (
    COMPLETED, FAILED_BEFORE_FIRST, FAILED_AFTER_FIRST, SHED, TIMED_OUT, LEFT_BEFORE_FIRST, LEFT_AFTER_FIRST,
)  # fmt: skip
# Values of STAGE: those until the first token, which add up to its time, and those after it.
ADMIT, HOLD, RETRY, RESERVE, PREFILL = "admit", "hold", "retry", "reserve", "prefill"
QUEUE_PREFILL, QUEUE_DECODE = "queue_prefill", "queue_decode"
TTFT_STAGES = (ADMIT, HOLD, QUEUE_PREFILL, QUEUE_DECODE, RETRY, RESERVE, PREFILL)
TRANSFER, EXPOSED_TRANSFER, DECODE = "transfer", "exposed_transfer", "decode"
# Values of LIMIT: what a pool stands at, or that it cannot meet its objective at any size.
LIMIT_MAX, LIMIT_BUDGET, LIMIT_CLUSTER, LIMIT_OBJECTIVE = "max", "budget", "cluster", "objective"
# Values of STATE, of pods.
DESIRED, POD_READY, STARTING, DRAINING, UNSCHEDULABLE = "desired", "ready", "starting", "draining", "unschedulable"
# Values of PHASE: how a worker gets its model.
DOWNLOAD, READ = "download", "read"
# Values of DIRECTION, of scalings.
UP, DOWN = "up", "down"
# Values of DIRECTION, of KV.
SENT, RECEIVED = "sent", "received"
# Values of SOURCE: where the KV of prompt tokens came from. LOCAL_REST is what decode has computed
# by choice behind the start of a prompt that it had; it is not part of LOCAL_COMPUTE.
LOCAL_COMPUTE = "local_compute"
LOCAL_REST = "local_rest"
LOCAL_CACHE_HIT = "local_cache_hit"
EXTERNAL_KV_TRANSFER = "external_kv_transfer"

BUILD_INFO = "disagg_build_info"

ROUTER_WAITING_REQUESTS = "disagg_router_waiting_requests"
ROUTER_PAIRS = "disagg_router_pairs"
ROUTER_PAIR_TRANSPORTS = "disagg_router_pair_transports"
ROUTER_REQUESTS = "disagg_router_requests_total"
ROUTER_GENERATIONS = "disagg_router_generations_total"
ROUTER_STAGE_SECONDS = "disagg_router_stage_seconds"
ROUTER_HANDOVER_SECONDS = "disagg_router_handover_seconds"
ROUTER_LONGEST_GAP_SECONDS = "disagg_router_longest_gap_seconds"
ROUTER_OLDEST_POLL_AGE_SECONDS = "disagg_router_oldest_poll_age_seconds"
ROUTER_LOOP_LAG_SECONDS = "disagg_router_loop_lag_seconds"
ROUTER_OBJECTIVE_SECONDS = "disagg_router_objective_seconds"
ROUTER_RUNNING_REQUESTS = "disagg_router_running_requests"
ROUTER_TTFT_SECONDS = "disagg_router_ttft_seconds"
ROUTER_TPOT_SECONDS = "disagg_router_tpot_seconds"
ROUTER_REQUEST_SECONDS = "disagg_router_request_seconds"
ROUTER_REQUESTS_DISAGGREGATED = "disagg_router_requests_disaggregated_total"
ROUTER_PATH_REASONS = "disagg_router_path_reasons_total"
ROUTER_FAILOVERS = "disagg_router_failovers_total"
ROUTER_GIVEN_UP = "disagg_router_workers_given_up_total"
ROUTER_BREAKERS = "disagg_router_breakers"
ROUTER_BREAKER_CHANGES = "disagg_router_breaker_changes_total"
ROUTER_RETRY_BUDGET = "disagg_router_retry_budget"
ROUTER_RETRY_WAITS = "disagg_router_retry_waits_total"
ROUTER_WEAKENED = "disagg_router_weakened_total"
ROUTER_RESUMES = "disagg_router_resumes_total"
ROUTER_LIMITED = "disagg_router_limited_requests_total"
ROUTER_HELD = "disagg_router_held_requests_total"
ROUTER_STALLED_CLIENTS = "disagg_router_stalled_clients_total"
ROUTER_HOLDING = "disagg_router_holding_requests"
ROUTER_PROMPT_TOKENS = "disagg_router_prompt_tokens_total"
ROUTER_GENERATED_TOKENS = "disagg_router_generated_tokens_total"
ROUTER_ARRIVALS = "disagg_router_arrivals_total"
ROUTER_ARRIVED_PROMPT_TOKENS = "disagg_router_arrived_prompt_tokens_total"
ROUTER_ARRIVED_PROMPT_TOKENS_SQUARED = "disagg_router_arrived_prompt_tokens_squared_total"
ROUTER_PREFILLED_REQUESTS = "disagg_router_prefilled_requests_total"
ROUTER_PREFILLED_TOKENS = "disagg_router_prefilled_tokens_total"
ROUTER_PREFILLED_TOKENS_SQUARED = "disagg_router_prefilled_tokens_squared_total"
ROUTER_OBJECTIVE_REQUESTS = "disagg_router_objective_requests_total"
ROUTER_COMPLETIONS = "disagg_router_completions_total"
ROUTER_COMPLETED_TOKENS = "disagg_router_completed_tokens_total"
ROUTER_TRACES = "disagg_router_traces_total"
ROUTER_TRACE_SPANS = "disagg_router_trace_spans_total"
ROUTER_TRACE_SPANS_DROPPED = "disagg_router_trace_spans_dropped_total"
ROUTER_SPLIT_REQUESTS = "disagg_router_split_requests_total"
ROUTER_SPLIT_TTFT_SECONDS = "disagg_router_split_ttft_seconds"
ROUTER_SPLIT_TPOT_SECONDS = "disagg_router_split_tpot_seconds"

# prometheus_client adds `_info` to the name of an Info metric.
WORKER_IDENTITY = "disagg_worker"
WORKER_INFO = "disagg_worker_info"
WORKER_WAITING_REQUESTS = "disagg_worker_waiting_requests"
WORKER_WAITING_TOKENS = "disagg_worker_waiting_tokens"
WORKER_RUNNING_REQUESTS = "disagg_worker_running_requests"
WORKER_KV_BLOCKS = "disagg_worker_kv_blocks"
WORKER_KV_TOKENS = "disagg_worker_kv_tokens"
WORKER_KV_CAPACITY_TOKENS = "disagg_worker_kv_capacity_tokens"
WORKER_PROMPT_TOKENS = "disagg_worker_prompt_tokens_total"
WORKER_PROMPT_TOKENS_BY_SOURCE = "disagg_worker_prompt_tokens_by_source_total"
WORKER_CACHED_TOKENS = "disagg_worker_cached_tokens_total"
WORKER_GENERATED_TOKENS = "disagg_worker_generated_tokens_total"
WORKER_PREEMPTIONS = "disagg_worker_preemptions_total"
WORKER_LATE_PROMPTS = "disagg_worker_late_prompts_total"
WORKER_HOST_CACHE_BYTES = "disagg_worker_host_cache_bytes"
WORKER_PROGRESS_TIMESTAMP_SECONDS = "disagg_worker_progress_timestamp_seconds"
WORKER_OLDEST_RESERVATION_AGE_SECONDS = "disagg_worker_oldest_reservation_age_seconds"
WORKER_LOAD_SECONDS = "disagg_worker_load_seconds"
WORKER_STEPS = "disagg_worker_steps_total"
WORKER_STEP_SECONDS = "disagg_worker_step_seconds_total"
WORKER_RESERVATIONS_REFUSED = "disagg_worker_reservations_refused_total"
WORKER_PREFILL_BATCHES = "disagg_worker_prefill_batches_total"
WORKER_PREFILL_BATCH_TOKENS = "disagg_worker_prefill_batch_tokens_total"
WORKER_PREFILL_BATCH_TOKENS_SQUARED = "disagg_worker_prefill_batch_tokens_squared_total"
WORKER_PREFILL_BATCH_SECONDS = "disagg_worker_prefill_batch_seconds_total"
WORKER_DECODE_STEPS = "disagg_worker_decode_steps_total"
WORKER_DECODE_STEP_SEQUENCES = "disagg_worker_decode_step_sequences_total"
WORKER_DECODE_STEP_KV_TOKENS = "disagg_worker_decode_step_kv_tokens_total"
WORKER_DECODE_STEP_SECONDS = "disagg_worker_decode_step_seconds_total"
PREFILL_BATCH_LIMIT_TOKENS = "disagg_prefill_batch_limit_tokens"
PREFILL_BATCH_MOST_TOKENS = "disagg_prefill_batch_most_tokens"
# Of engines behind an adapter.
ENGINE_TRANSFER_BYTES = "disagg_engine_transfer_bytes_total"
ENGINE_TRANSFER_SECONDS = "disagg_engine_transfer_seconds_total"
ENGINE_TRANSFERS = "disagg_engine_transfers_total"
ENGINE_TRANSFER_FAILURES = "disagg_engine_transfer_failures_total"
ENGINE_HANDOVERS_EXPIRED = "disagg_engine_handovers_expired_total"
ENGINE_HANDOVERS_STRANDED = "disagg_engine_handovers_stranded_total"
ENGINE_LATE_READS = "disagg_engine_late_reads_total"
ENGINE_OTHER_FIRST_TOKENS = "disagg_engine_other_first_tokens_total"
KV_TRANSFER_BYTES = "disagg_kv_transfer_bytes_total"
KV_TRANSFER_SECONDS = "disagg_kv_transfer_seconds"
KV_TRANSFER_EXPOSED_SECONDS = "disagg_kv_transfer_exposed_seconds"
KV_TRANSFER_FAILURES = "disagg_kv_transfer_failures_total"
KV_TRANSFER_SAVED_BLOCKS = "disagg_kv_transfer_saved_blocks_total"
KV_TRANSFER_SAVED_BYTES = "disagg_kv_transfer_saved_bytes_total"
KV_TRANSFERS = "disagg_kv_transfers_total"
KV_LINK_BUSY_SECONDS = "disagg_kv_link_busy_seconds_total"
KV_INTERFACE_SPEED_BYTES = "disagg_kv_interface_speed_bytes"
KV_QUARANTINED_BLOCKS = "disagg_kv_quarantined_blocks"

CONDITION = "disagg_condition"
DEPLOYMENT_CONDITION = "disagg_deployment_condition"
DEPLOYMENT_UNOBSERVED_SECONDS = "disagg_deployment_unobserved_seconds"
POOL_PODS = "disagg_pool_pods"
OPERATOR_RECONCILES = "disagg_operator_reconciles_total"
OPERATOR_RECONCILE_SECONDS = "disagg_operator_reconcile_seconds"
OPERATOR_QUEUE_DEPTH = "disagg_operator_queue_depth"
OPERATOR_WATCH_EVENTS = "disagg_operator_watch_events_total"
OPERATOR_API_WRITES = "disagg_operator_api_writes_total"
OPERATOR_LEADING = "disagg_operator_leading"
OPERATOR_SWEEP_SECONDS = "disagg_operator_sweep_seconds"
OPERATOR_EXCHANGES = "disagg_operator_pool_exchanges_total"
OPERATOR_DRAINS = "disagg_operator_drains_total"
OPERATOR_DRAIN_CUT_REQUESTS = "disagg_operator_drain_cut_requests_total"
OPERATOR_SCALINGS = "disagg_operator_scalings_total"
OPERATOR_ZEROS = "disagg_operator_zeros_total"
OPERATOR_WAKES = "disagg_operator_wakes_total"
OPERATOR_WAKE_SECONDS = "disagg_operator_wake_seconds"
AUTOSCALER_REPLICAS = "disagg_autoscaler_replicas"
AUTOSCALER_WANTED_REPLICAS = "disagg_autoscaler_wanted_replicas"
AUTOSCALER_SIGNAL = "disagg_autoscaler_signal"
AUTOSCALER_NUMBER = "disagg_autoscaler_number"
AUTOSCALER_LIMITED = "disagg_autoscaler_limited"
AUTOSCALER_FAILURES = "disagg_autoscaler_failures_total"
AUTOSCALER_BLIND = "disagg_autoscaler_blind"

# What becomes of requests for the rest of a stream; but for the first, they are codes of refusals.
RESUMED = "resumed"
RESUME_OUTCOMES = (RESUMED, "not_resumable", "request_id_reused", "overloaded")

# The series that the autoscaler reads from each router and from each worker.
READ_OF_ROUTERS = (
    ROUTER_WAITING_REQUESTS,
    ROUTER_ARRIVALS,
    ROUTER_ARRIVED_PROMPT_TOKENS,
    ROUTER_ARRIVED_PROMPT_TOKENS_SQUARED,
    ROUTER_PREFILLED_REQUESTS,
    ROUTER_PREFILLED_TOKENS,
    ROUTER_PREFILLED_TOKENS_SQUARED,
    ROUTER_OBJECTIVE_REQUESTS,
    ROUTER_COMPLETIONS,
    ROUTER_COMPLETED_TOKENS,
)
READ_OF_WORKERS = (
    WORKER_WAITING_REQUESTS,
    WORKER_WAITING_TOKENS,
    WORKER_RUNNING_REQUESTS,
    WORKER_KV_TOKENS,
    WORKER_KV_CAPACITY_TOKENS,
    WORKER_GENERATED_TOKENS,
    WORKER_PROMPT_TOKENS_BY_SOURCE,
    WORKER_PREFILL_BATCHES,
    WORKER_PREFILL_BATCH_TOKENS,
    WORKER_PREFILL_BATCH_TOKENS_SQUARED,
    WORKER_PREFILL_BATCH_SECONDS,
    WORKER_DECODE_STEPS,
    WORKER_DECODE_STEP_SEQUENCES,
    WORKER_DECODE_STEP_KV_TOKENS,
    WORKER_DECODE_STEP_SECONDS,
    WORKER_INFO,
    PREFILL_BATCH_LIMIT_TOKENS,
    PREFILL_BATCH_MOST_TOKENS,
)
