"""What a selection promised of its rounds, checked against the rounds that there were."""

from __future__ import annotations

from collections.abc import Iterable

from ...core import Sampling, SpecError

_NAMED = 5

def require_separated(
    sampling: Sampling | None, round: int, clients: Iterable[str],
    history: Iterable[tuple[int, Iterable[str]]],
) -> None:
    """Refuse a round in which a client would take part against what its selection promised.

    Args:
        sampling: the promise.
        round: the round that is about to begin.
        clients: who would take part.
        history: numbers and clients of all rounds before.

    Raises:
        SpecError: names up to five of the clients concerned; or the history is not complete.

    Example:
        >>> promise = Sampling("public", 1.0, "client", separation=3)
        >>> require_separated(promise, 4, ["a"], [(1, ["a"]), (2, ["b"]), (3, ["c"])])
    """
    if sampling is None or (sampling.separation == 1 and sampling.most_rounds is None):
        return
    last: dict[str, int] = {}
    times: dict[str, int] = {}
    known = 0
    for number, names in history:
        known += 1
        for client in names:
            last[client] = max(number, last.get(client, 0))
            times[client] = times.get(client, 0) + 1
    if known != round - 1:
        raise SpecError(f"round {round}", need=f"the clients of the {round - 1} rounds before",
                        found=f"those of {known}", fix="Begin from init(), which reads them.")
    most = sampling.most_rounds
    bad = [client for client in clients if client in last and (
        round - last[client] < sampling.separation or (most is not None and times[client] >= most))]
    if bad:
        cap = "" if most is None else f" and took part in fewer than {most}"
        named = ", ".join(f"{client} (last in round {last[client]}, {times[client]} in all)"
                          for client in bad[:_NAMED])
        raise SpecError(
            f"round {round}", need=f"clients whose last round is at least {sampling.separation} "
            f"rounds ago{cap}, as the noise counts on",
            found=named + ("" if len(bad) <= _NAMED else f" and {len(bad) - _NAMED} more"),
            fix="Leave these clients out of this round. Where the selection's state was lost, "
            "begin from init().")
