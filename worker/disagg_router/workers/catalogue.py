"""PURE: What the router can serve: names, the weights behind each, and who serves them.

Nothing in it comes from the router's own settings. While one model replaces another, both are in
it, under one name or under two.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from disagg_router.workers.canary import Canary, team_shares
from disagg_router.workers.shares import drawn, pair_shares
from disagg_router.workers.worker_info import Identity, Worker
from disagg_wire.protocol import FEATURE_NO_LOCAL_PREFILL, READY
from disagg_wire.roles import BOTH

# What the workers of an identity can do together, from least to most. Requests go to the most able
# of the identities that have one name.
NOTHING_WHOLE, DECODE_ALONE, PAIR, PROVEN_PAIR = range(4)
_WORDS = ("no pair", "decode alone", "a pair", "a proven pair")


@dataclass(frozen=True, slots=True)
class Model:
    """The properties of a model that requests are checked against.

    Workers of one identity compute the same tokens; the smallest of their limits applies.
    """

    identity: Identity
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Offer:
    """One identity, and what the workers that have it are able to do."""

    model: Model
    ability: int
    """One of NOTHING_WHOLE, DECODE_ALONE, PAIR and PROVEN_PAIR."""
    share: float
    """The part of the requests for this name that it gets, among those of the same ability."""


@dataclass(frozen=True, slots=True)
class Catalogue:
    """All offers by name."""

    offers: Mapping[str, tuple[Offer, ...]] = field(default_factory=dict)

    def current(self, name: str) -> tuple[Offer, ...]:
        """Return the offers that new requests for a name go to."""
        found = self.offers.get(name, ())
        most = max((o.ability for o in found), default=NOTHING_WHOLE)
        return tuple(o for o in found if o.ability == most)

    def pick(self, name: str, roll: float) -> Model | None:
        """Return the model for a new request, by the shares; 0 <= `roll` < 1 decides.

        It is None while no worker that has the name is ready.
        """
        offers = self.current(name)
        return offers[drawn([o.share for o in offers], roll)].model if offers else None

    def serves(self, name: str) -> bool:
        """Return whether whole requests for a name can be served."""
        return any(o.ability > NOTHING_WHOLE for o in self.offers.get(name, ()))

    def has(self, identity: Identity) -> bool:
        """Return whether a ready worker has the identity."""
        return any(o.model.identity == identity for o in self.offers.get(identity.name, ()))

    def goes_to(self, identity: Identity) -> bool:
        """Return whether new requests may go to the identity."""
        return any(o.model.identity == identity for o in self.current(identity.name))

    def lines(self) -> list[str]:
        """Return one text for each offer, for the log."""
        return [
            f"{name} = {o.model.identity.fingerprint} ({_WORDS[o.ability]}, {o.share:.2f})"
            for name, offers in sorted(self.offers.items())
            for o in offers
        ]

    def live(self) -> dict[str, Identity]:
        """Return the names under which whole requests can be served, each with one identity."""
        current = {name: self.current(name)[0] for name in sorted(self.offers)}
        return {name: offer.model.identity for name, offer in current.items() if offer.ability > NOTHING_WHOLE}


def catalogue_of(
    workers: Iterable[Worker], proven: Collection[str], digests: Collection[str], canary: Canary | None = None
) -> Catalogue:
    """Return what these workers serve.

    `proven` contains the incarnations that have moved KV. Models whose digest is not in `digests`
    are left out: their tokenizer is not known yet. `canary` says which part of the requests a new
    revision gets.
    """
    by_identity: dict[Identity, list[Worker]] = {}
    for worker in workers:
        if worker.state == READY and worker.digest in digests:
            for identity in worker.identities():
                by_identity.setdefault(identity, []).append(worker)
    teams: defaultdict[str, list[_Team]] = defaultdict(list)
    for identity, listed in by_identity.items():
        teams[identity.name].append(_team(identity, listed, proven))
    return Catalogue({name: _offers(found, canary) for name, found in teams.items()})


@dataclass(frozen=True, slots=True)
class _Team:
    """The workers of one identity. Only those with a partner count, unless no pair is possible."""

    model: Model
    ability: int
    prefills: int
    decodes: int
    workers: tuple[Worker, ...]


def _team(identity: Identity, workers: list[Worker], proven: Collection[str]) -> _Team:
    first = workers[0]
    model = Model(identity, min(w.max_model_len for w in workers), first.vocab_size, first.eos_token_ids)
    prefills = Counter(w.compat for w in workers if w.serves("prefill"))
    decodes = Counter(w.compat for w in workers if w.serves("decode"))
    paired = prefills.keys() & decodes.keys()
    if paired:
        # A worker that does both needs to move no KV.
        known = [w for w in workers if w.incarnation in proven or w.role == BOTH]
        shown = {w.compat for w in known if w.serves("prefill")} & {w.compat for w in known if w.serves("decode")}
        ability = PROVEN_PAIR if shown else PAIR
        return _Team(model, ability, sum(prefills[c] for c in paired), sum(decodes[c] for c in paired), tuple(workers))
    alone = [w for w in workers if w.serves("decode") and FEATURE_NO_LOCAL_PREFILL not in w.features]
    return _Team(model, DECODE_ALONE if alone else NOTHING_WHOLE, 0, len(alone), tuple(workers))


def can_serve(identity: Identity, workers: list[Worker]) -> bool:
    """Return whether these workers of one identity can serve a whole request."""
    return bool(workers) and _team(identity, workers, ()).ability > NOTHING_WHOLE


def _offers(teams: list[_Team], canary: Canary | None) -> tuple[Offer, ...]:
    """Return the offers of one name."""
    out: list[Offer] = []
    for ability in (PROVEN_PAIR, PAIR, DECODE_ALONE, NOTHING_WHOLE):
        alike = sorted(
            (t for t in teams if t.ability == ability),
            key=lambda t: (t.model.identity.digest, t.model.identity.adapter_digest),
        )
        if canary is None:
            shares = pair_shares([(t.prefills, t.decodes) for t in alike])
        else:
            shares = team_shares(canary, [t.workers for t in alike])
        out += [Offer(team.model, ability, share) for team, share in zip(alike, shares, strict=True)]
    return tuple(out)


class KnownNames:
    """The names that requests may wait for: configured, about to be served, or just served.

    `adapters` are the LoRA adapters of the configured model, as far as they are known from the
    start.
    """

    def __init__(self, configured: str, memory_s: float, adapters: Collection[str] = ()) -> None:
        self.configured = configured
        self._adapters = frozenset(adapters)
        # Before a worker was ready, it cannot be told which names do not exist.
        self.any_served = False
        self._configured_served = False
        self._memory_s = memory_s
        self._live: dict[str, Identity] = {}
        self._last: dict[str, tuple[Model, float]] = {}
        self._coming: frozenset[str] = frozenset()
        self._offered: frozenset[str] = frozenset()
        self._all_told = True

    def update(self, catalogue: Catalogue, coming: Collection[str], now_s: float, *, all_told: bool = True) -> None:
        """Note what is served now, and what starting workers say that they will serve.

        `all_told` is set if no worker is listed that has not said what it serves.
        """
        self._all_told = all_told
        self.any_served = self.any_served or bool(catalogue.offers)
        self._configured_served = self._configured_served or self.configured in catalogue.offers
        self._live, self._offered, self._coming = catalogue.live(), frozenset(catalogue.offers), frozenset(coming)
        self._last |= {name: (catalogue.current(name)[0].model, now_s) for name in catalogue.offers}
        for name in [n for n in self._last if not self.known(n, now_s)]:
            del self._last[name]

    def known(self, name: str, now_s: float) -> bool:
        """Return whether a request for the name may wait for its workers."""
        # One model may be replacing another, and has not said its name yet.
        untold = self.any_served and not self._live and not self._all_told
        return untold or self.expected(name, now_s)

    def expected(self, name: str, now_s: float) -> bool:
        """Return whether the name exists, so that a request for it may ask for workers."""
        if name in self._coming or name in self._live:
            return True
        if self._is_replaced(name):
            return False
        if name == self.configured or self._belongs(name):
            return True
        return name in self._last and now_s - self._last[name][1] < self._memory_s

    def last(self, name: str) -> Model | None:
        """Return the model that was served last under a name: with it, requests can be read while
        its workers are away.
        """
        return self._last[name][0] if name in self._last else None

    def digests(self) -> set[str]:
        """Return the digests of all that was just served."""
        return {model.identity.digest for model, _ in self._last.values()}

    def _is_replaced(self, name: str) -> bool:
        """Return whether other models are served now, and no worker is left or to come that may
        serve the one that the name belongs to.

        The configured model that was not there yet is to come, whoever serves meanwhile.
        """
        last = self.last(name)
        first = self.configured if name in self._adapters else name
        model = first if last is None else last.identity.parent or name
        if model == self.configured and not self._configured_served:
            return False
        models = {identity.parent or served for served, identity in self._live.items()}
        return self._all_told and bool(models) and model not in models | self._coming | self._offered

    def _belongs(self, name: str) -> bool:
        """Return whether it is an adapter of the configured model while that is away as well."""
        if self.configured in self._live:
            return False
        last = self.last(name)
        return name in self._adapters if last is None else last.identity.parent == self.configured

    def listed(self) -> dict[str, str]:
        """Return the names to show to clients, each with its parent: models first, then adapters.

        They are the configured name unless another model has replaced it, those that are served,
        and the adapters of the configured model while that is away.
        """
        shown = {name: identity.parent for name, identity in self._live.items()}
        away = [name for name in {*self._last, *self._adapters} if self._belongs(name) and not self._is_replaced(name)]
        shown |= dict.fromkeys(away, self.configured)
        if not self._is_replaced(self.configured):
            shown.setdefault(self.configured, "")
        return dict(sorted(shown.items(), key=lambda item: (bool(item[1]), item[0] != self.configured, item[0])))
