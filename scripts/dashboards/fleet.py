"""The dashboard of all deployments."""

from __future__ import annotations

from scripts.dashboards.board import NAMESPACE, Board, Kind, Panel, Query, Row, Unit, Variable
from scripts.dashboards.promql import EVERY, legend

from disagg_operator.status.alerts.alert import D
from disagg_wire import series as s

_IN = f'{s.NAMESPACE}=~"${NAMESPACE}"'
_WHOSE = f"{legend(s.NAMESPACE)}/{legend(s.DEPLOYMENT)}"


def _of(series: str, matchers: str = "") -> str:
    return f"{series}{{{_IN}{f',{matchers}' if matchers else ''}}}"


def _p99(histogram: str) -> str:
    return f"histogram_quantile(0.99, sum by (le, {D}) (rate({_of(f'{histogram}_bucket')}[{EVERY}])))"


def _burn(slo: str, window: str) -> str:
    missed = _of(f"slo:sli_error:ratio_rate{window}", f'sloth_slo="{slo}"')
    return f"max by ({D}) ({missed})"


def _summary() -> Row:
    ready = _of(s.DEPLOYMENT_CONDITION, 'type="Ready",status="True"')
    others = _of(s.DEPLOYMENT_CONDITION, 'type="Ready",status!="True"')
    firing = _of("ALERTS", 'alertname=~"Disagg.*",alertstate="firing"')
    pods = _of(s.POOL_PODS, 'state="ready"')
    wanted = _of(s.POOL_PODS, 'state="desired"')
    tokens = _of(s.ROUTER_GENERATED_TOKENS)

    def number(title: str, text: str, expression: str, unit: Unit = Unit.NUMBER, red: float | None = None) -> Panel:
        return Panel(title, text, unit, (Query(expression, title),), Kind.NUMBER, 4, 4, red_above=red)

    return Row(
        "Now",
        (
            number("Ready", "Deployments that serve as specified.", f"count({ready}) or vector(0)"),
            number("Not ready", "Deployments with something that is not as specified.",
                   f"count({others}) or vector(0)", red=0.5),
            number("Alerts", "Alerts of disagg that are firing.", f"count({firing}) or vector(0)", red=0.5),
            number("Workers ready", "Pods of all pools that serve.", f"sum({pods})"),
            number("Workers missing", "Pods that the pools should have and have not.",
                   f"sum({wanted}) - sum({pods})", red=0.5),
            number("Tokens per second", "Tokens generated per second by all deployments.",
                   f"sum(rate({tokens}[{EVERY}]))", Unit.TOKENS_PER_S),
        ),
    )  # fmt: skip


def _table() -> Panel:
    ready = _of(s.DEPLOYMENT_CONDITION, 'type="Ready",status="True"')
    others = _of(s.DEPLOYMENT_CONDITION, 'type="Ready",status!="True"')
    return Panel(
        "Deployments",
        "Whether each is ready (1 or 0), the share of requests that missed each objective in the last hour,"
        " slow first tokens and slow output, and its load.",
        Unit.NUMBER,
        (
            Query(f"max by ({D}) ({ready}) or 0 * max by ({D}) ({others})", "ready"),
            *(Query(_burn(slo, "1h"), f"{slo} missed, 1 h") for slo in (s.TTFT, s.TPOT, "availability")),
            Query(_p99(s.ROUTER_TTFT_SECONDS), "TTFT p99, s"),
            Query(_p99(s.ROUTER_TPOT_SECONDS), "TPOT p99, s"),
            Query(f"sum by ({D}) (rate({_of(s.ROUTER_GENERATED_TOKENS)}[{EVERY}]))", "tokens/s"),
            Query(f"sum by ({D}) ({_of(s.ROUTER_WAITING_REQUESTS)})", "waiting"),
        ),
        Kind.TABLE,
        width=24,
    )


def _not_ready() -> Panel:
    others = _of(s.DEPLOYMENT_CONDITION, 'status!="True",type=~"Ready|Available"')
    return Panel(
        "Why not",
        "Deployments that are not ready or not available, with the reason that their conditions give.",
        Unit.NUMBER,
        (Query(f"max by ({D}, type, reason) ({others})", "so"),),
        Kind.TABLE,
        width=12,
        height=6,
        may_be_empty="all deployments are ready while all is well",
    )


def _firing() -> Panel:
    firing = _of("ALERTS", 'alertname=~"Disagg.*",alertstate="firing"')
    return Panel(
        "Alerts that fire",
        "Each has a page in docs/runbooks of its name.",
        Unit.NUMBER,
        (Query(f"max by (alertname, severity, {D}) ({firing})", "firing"),),
        Kind.TABLE,
        width=12,
        height=6,
        may_be_empty="nothing fires while all is well",
    )


def _lines() -> Row:
    arrivals, tokens = _of(s.ROUTER_ARRIVALS), _of(s.ROUTER_GENERATED_TOKENS)
    ready = _of(s.POOL_PODS, 'state="ready"')
    return Row(
        "Over time",
        (
            Panel("Requests", "Requests that arrive.", Unit.REQUESTS_PER_S,
                  (Query(f"sum by ({D}) (rate({arrivals}[{EVERY}]))", _WHOSE),), Kind.STACK),
            Panel("Tokens", "Tokens generated.", Unit.TOKENS_PER_S,
                  (Query(f"sum by ({D}) (rate({tokens}[{EVERY}]))", _WHOSE),), Kind.STACK),
            Panel("TTFT, p99", "Slow first tokens.", Unit.SECONDS, (Query(_p99(s.ROUTER_TTFT_SECONDS), _WHOSE),)),
            Panel("TPOT, p99", "Slow output after the first token.", Unit.SECONDS,
                  (Query(_p99(s.ROUTER_TPOT_SECONDS), _WHOSE),)),
            Panel("Missed objectives", "Share of the last five minutes' requests that missed an objective.",
                  Unit.SHARE, (Query(_of("slo:sli_error:ratio_rate5m"), f"{_WHOSE} {legend('sloth_slo')}"),),
                  red_above=0.144),
            Panel("Workers", "Pods that serve, by pool.", Unit.NUMBER,
                  (Query(f"sum by ({D}, pool) ({ready})",
                         f"{_WHOSE} {legend(s.POOL)}"),), Kind.STACK),
        ),
    )  # fmt: skip


def board() -> Board:
    return Board(
        "disagg-fleet",
        "disagg / Fleet",
        "All deployments: which are well, which miss their objectives, and what they serve.",
        (Variable(NAMESPACE, s.NAMESPACE, s.DEPLOYMENT_CONDITION, several=True),),
        (_summary(), Row("Each deployment", (_table(), _not_ready(), _firing())), _lines()),
    )
