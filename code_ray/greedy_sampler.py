"""Algorithm 1 repaired: score paths cheaply, then train by expected improvement (DESIGN 2.5)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Literal

import numpy as np

from code_ray.acquisition import NODES, expected_improvement
from code_ray.forecast import after_rung, after_score, from_z, noise_std, to_z
from code_ray.objective import Known, Objective
from code_ray.path import InferencePath
from code_ray.path_space import Sides, class_columns
from code_ray.plain_predictors import PREDICTORS
from code_ray.predictor import Measured, Predictor
from code_ray.rungs import Rungs
from code_ray.sampler import Left, Proposal, Sampler, Stopping
from code_ray.scoring import Score
from code_ray.scoring_design import BATCH, groups_of, next_batch, scoring_design
from code_ray.space import Candidate, feature_matrix
from code_ray.throughput import FloatArray
from code_ray.wide_space import WideSpace

WORTH_SCORING = 0.2
"""A batch takes in paths with at least this share of the expected improvement of its best."""

LEAST_TRAININGS = 4
"""So many paths are trained before a search may end because it expects nothing: until then its forecasts are untested."""


class GreedySampler(Sampler):
    """Algorithm 1 repaired. ``predictor``: gp, or ridge, constant and random to compare with.

    At first some paths are scored: the one that would serve most if it lost nothing; then some without a host (the rivals) and, of
    each host, a few groups far apart, but none that could not even so add to what is forecast by then, as long as there is better
    to do. From then on the path with the largest expected improvement of the objective is next: it is trained where it was scored,
    else scored with the best of its group, up to ``screen`` scores in all. Trainings that fall back are stopped at a rung, unless
    they belong to the best 1 / ``reduction`` there; one that later is what promises most after all is promoted, and trained to its
    end. No path is trained twice, and the best set is kept, not the last path.

    With ``wide``, ``candidates`` are its start: they are chosen again from all of the space whenever something was measured.
    """

    def __init__(
        self,
        candidates: Sequence[Candidate],
        objective: Objective,
        stopping: Stopping,
        hosts: Mapping[str, int],
        *,
        predictor: Literal["gp", "ridge", "constant", "random"] = "gp",
        screen: int = 24,
        reduction: int = 2,
        seed: int = 0,
        wide: WideSpace | None = None,
        sides: Sides | None = None,
        hosts_per_path: int = 1,
    ) -> None:
        self._hosts = hosts
        self._hosts_per_path = hosts_per_path
        self._sides = sides
        self._predictor: Predictor | None = None
        super().__init__(candidates, objective, stopping)
        self._seed = seed
        if candidates and predictor != "random":
            self._predictor = PREDICTORS[predictor](self._features, class_columns(hosts, hosts_per_path), seed)
        self._screen = screen if self._predictor is not None and self._predictor.uses_scores else 0
        self._wide = wide
        self._looked_after = 0  # so much was measured when candidates were last chosen
        self._forecasts: dict[InferencePath, float] = {}  # scored paths: z after training, as the score says
        self._dropped: set[InferencePath] = set()
        self._failed_scores = 0
        self._rungs = Rungs(reduction)
        self._design: list[list[InferencePath]] = []
        if self._screen:
            rng = np.random.default_rng(seed)
            self._design = scoring_design(self.candidates, objective, self._features, list(hosts), self._screen, rng)

    def ask(self) -> tuple[Proposal, ...]:
        if self.stopped_because:
            return ()
        if batch := next_batch(self._design, self.index, self._in_question(self._designed)):
            return self._propose(batch[: self._scores_left], "fit")
        if self._design and not self._forecasts and self._pending:
            return ()  # what to do next depends on what these say
        self._look_again()
        in_flight = [self.index[p.path] for p in self._pending if p.fidelity == "trained"]
        open_indices = self._open(in_flight)
        if len(self.trained) + len(in_flight) >= self.stopping.max_trainings or not open_indices:
            if not self._pending:
                nothing_left = "every path was trained" if self._wide is None else "no path left could add to the plan"
                self.stopped_because = self._budget_spent if open_indices else nothing_left
            return ()
        if self._predictor is None:
            # Of what is done, not of what was drawn before: a resumed search draws the same.
            done = len(self.trained) + len(self._dropped) + len(in_flight)
            return self._propose([int(np.random.default_rng((self._seed, done)).choice(open_indices))], "trained")
        return self._by_expected_improvement(self._predictor, open_indices, in_flight)

    def tell(self, proposal: Proposal, accuracy: float, score: Score | None = None) -> None:
        super().tell(proposal, accuracy)
        if score is not None:
            self._forecasts[proposal.path] = after_score(score, proposal.path)
        if proposal.fidelity == "trained":
            before = self.objective.value(self.known)
            self.trained[proposal.path] = accuracy
            self._rungs.stopped.pop(proposal.path, None)
            self._count_gain(before, self.objective.value(self.known))

    def rival(self) -> Proposal | None:
        """The one of largest expected improvement over the plan of paths without a host; it may be one that was stopped."""
        left = [i for i in self._open([self.index[p.path] for p in self._pending]) if not self.candidates[i].path.hosts]
        if self._predictor is None or not left:
            return None
        mean, std = self._predictor.predict(self._measured(), left)
        gains = self._gains(left, mean, std, {path: entry for path, entry in self.known.items() if not path.hosts})
        return self._propose([left[int(gains.argmax())]], "trained")[0] if gains.max() > self.stopping.epsilon else None

    def admit(self, path: InferencePath) -> bool:
        if path not in self.index and self._wide is not None and path in self._wide.space:
            self._consider([*self.candidates, self._wide.candidate(path)])
        return super().admit(path)

    def keep_training(self, path: InferencePath, steps: int, share: float, loss_points: float) -> bool:
        """Asynchronous successive halving: go on where the path promises to add as much to a plan as the best 1 / ``reduction`` of
        all that came to this rung. One that was stopped and is asked for again has been promoted since, and goes on.
        """
        if path in self._rungs.stopped:
            return True
        self._rungs.arrive(path, steps, *after_rung(loss_points, share))
        if self._predictor is None or self._rungs.among_the_best(path, steps, partial(self._promise, steps)):
            return True
        return self._is_next(self._predictor, path)

    def stop(self, path: InferencePath) -> None:
        super().stop(path)
        self._rungs.stopped[path] = None

    def drop(self, proposal: Proposal) -> None:
        super().drop(proposal)
        self._dropped.add(proposal.path)
        self._failed_scores += proposal.fidelity == "fit"

    def expected_range(self, path: InferencePath) -> tuple[float, float] | None:
        if self._predictor is None:
            return None
        mean, std = self._predictor.predict(self._measured(), [self.index[path]])
        spread = 1.96 * np.hypot(std, noise_std(mean))
        low, high = (float(a) for a in self._accuracies(np.concatenate([mean + spread, mean - spread])))
        return low, high

    @property
    def left(self) -> Left | None:
        open_indices = self._open([])
        if self._predictor is None or not open_indices:
            return None
        mean, std = self._predictor.predict(self._measured(), open_indices, by_return=True)
        good = self._accuracies(mean - 1.96 * std)
        bound = self.objective.values_with(self.known, [self.candidates[i] for i in open_indices], good[None])
        others = 0 if self._wide is None else self._wide.faster - len(self.candidates)
        gain = self._gains(open_indices, mean, std, self.known).max()
        return Left(len(open_indices) + others, self.objective.value(self.known), float(gain), float(bound.max()))

    def _consider(self, candidates: Sequence[Candidate]) -> None:
        super()._consider(candidates)
        self._groups = groups_of(self.candidates)
        paths = [candidate.path for candidate in self.candidates]
        self._features = feature_matrix(paths, self._hosts, self._sides, self._hosts_per_path)
        if self._predictor is not None:
            self._predictor.look_at(self._features)

    def _look_again(self) -> None:
        """Choose the candidates from a wide space by what is known now."""
        measured = [*self._forecasts, *self.trained, *self._rungs.stopped, *self._dropped]
        if self._wide is None or self._predictor is None or len(measured) == self._looked_after:
            return
        self._looked_after = len(measured)
        needed = {*measured, *(proposal.path for proposal in self._pending)}
        kept = [candidate for candidate in self.candidates if candidate.path in needed]
        promising = self._wide.promising(self.known, *self._predictor.rough(self._measured()))
        self._consider([*{c.path: c for c in (*kept, *promising)}.values()])

    def _by_expected_improvement(self, predictor: Predictor, open_indices: list[int], in_flight: list[int]) -> tuple[Proposal, ...]:
        """Score or train where most is expected; nothing where too little is."""
        mean, std = predictor.predict(self._measured(), [*open_indices, *in_flight])
        n = len(open_indices)
        # What is in flight counts as if it came out as predicted, so that the next trial asks something else.
        flying = self._accuracies(mean[n:])
        coming = {self.candidates[i].path: (self.candidates[i].cost, float(a)) for i, a in zip(in_flight, flying, strict=True)}
        known = {**self.known, **coming}
        gains = self._gains(open_indices, mean[:n], std[:n], known)
        being_scored = {self.index[p.path] for p in self._pending if p.fidelity == "fit"}
        ready = {i: float(gain) for i, gain in zip(open_indices, gains, strict=True) if i not in being_scored}
        scorable = {index for group in self._groups.values() for index in self._unscored(group)}
        if max(ready.values(), default=0.0) <= max(0.0, self.stopping.epsilon):
            if self._pending:  # a worker has nothing better to do than to look at what is out of question
                return self._propose(next_batch(self._design, self.index, self._designed)[: self._scores_left], "fit")
            tested = self.stopping.epsilon > 0 and len(self.trained) >= min(LEAST_TRAININGS, self.stopping.patience)
            # The good end of what may be: of scores, which cost little, to the end of the interval that is reported.
            hopes = self._accuracies(mean[:n] - (1.96 if tested else 1.0) * std[:n])
            values = self.objective.values_with(known, [self.candidates[i] for i in open_indices], hopes[None])[0]
            ready = {i: float(value) - self.objective.value(known) for i, value in zip(open_indices, values, strict=True)}
            if tested:
                ready = {i: hope for i, hope in ready.items() if i in scorable and hope > self.stopping.epsilon}
            if not ready:
                # Least squares suit some blocks better than others, and where paths come back that were trained is where they do.
                gains = self._gains(open_indices, *predictor.predict(self._measured(), open_indices, by_return=True), known)
                ready = {i: float(gain) for i, gain in zip(open_indices, gains, strict=True) if gain > self.stopping.epsilon}
            if not ready:
                self.stopped_because = f"no path left is expected to gain {self.stopping.epsilon:g}"
                return ()
        best = max(ready, key=lambda i: ready[i])
        if best in scorable:
            worth = {i: gain for i, gain in ready.items() if i in scorable and gain >= WORTH_SCORING * ready[best]}
            group = next(group for group in self._groups.values() if best in group)
            batch = sorted((i for i in group if i in worth), key=lambda i: -worth[i])
            return self._propose(batch[: min(BATCH, self._scores_left)], "fit")
        return self._propose([best], "trained")

    def _gains(self, indices: list[int], mean: FloatArray, std: FloatArray, known: Known) -> FloatArray:
        """Expected improvement of the objective over ``known`` from each path."""
        candidates = [self.candidates[i] for i in indices]
        accuracies = self._accuracies(mean + NODES[:, None] * std)
        return expected_improvement(self.objective.values_with(known, candidates, accuracies), self.objective.value(known))

    def _promise(self, steps: int, path: InferencePath) -> float:
        """What ``path`` would add to all others that were trained if it came out one deviation better than forecast at a rung.

        Not the expectation: it would be made by tails that nobody has seen, of the fastest paths above all.
        """
        z, std = self._rungs.forecast(path, self._finals, steps)
        known = {other: entry for other, entry in self.known.items() if other != path}
        found = self.objective.values_with(known, [self.candidates[self.index[path]]], self._accuracies(np.array([[z - std]])))
        return float(found[0, 0]) - self.objective.value(known)

    def _is_next(self, predictor: Predictor, path: InferencePath) -> bool:
        """Whether ``path``, stopped now, would be promoted at once."""
        open_indices = self._open([self.index[p.path] for p in self._pending if p.fidelity == "trained" and p.path != path])
        mean, std = predictor.predict(self._measured(path), open_indices)
        gains = self._gains(open_indices, mean, std, self.known)
        return bool(gains.max() > self.stopping.epsilon and open_indices[int(gains.argmax())] == self.index[path])

    @property
    def _finals(self) -> dict[InferencePath, float]:
        return {path: float(to_z(self.objective.loss_points(accuracy))) for path, accuracy in self.trained.items()}

    def _accuracies(self, z: FloatArray) -> FloatArray:
        return self.objective.accuracies(from_z(z))

    def _measured(self, *stopped: InferencePath) -> Measured:
        """What was measured so far; ``stopped`` count as stopped at the rung they came to."""
        ended = self._finals
        finals = {self.index[path]: z for path, z in ended.items()}
        forecasts = {self.index[path]: z for path, z in self._forecasts.items()}
        at_rungs = {self.index[path]: self._rungs.forecast(path, ended) for path in (*self._rungs.stopped, *stopped)}
        return Measured(forecasts, finals, at_rungs)

    def _propose(self, indices: Iterable[int], fidelity: Literal["fit", "trained"]) -> tuple[Proposal, ...]:
        proposals = tuple(Proposal(self.candidates[i].path, fidelity) for i in indices)
        self._pending.update(proposals)
        return proposals

    def _open(self, in_flight: Sequence[int]) -> list[int]:
        """Paths that may still be trained."""
        closed = {*in_flight, *(self.index[path] for path in (*self.trained, *self._dropped))}
        return [i for i in range(len(self.candidates)) if i not in closed]

    @property
    def _expected(self) -> Known:
        """Every path of which something was measured, with the accuracy that it is expected to end with."""
        ended = self._finals
        z = {**self._forecasts, **{path: self._rungs.forecast(path, ended)[0] for path in self._rungs.stopped}, **ended}
        accuracies = self._accuracies(np.array([*z.values()])).tolist()
        return {path: (self.candidates[self.index[path]].cost, accuracy) for path, accuracy in zip(z, accuracies, strict=True)}

    @property
    def _designed(self) -> list[int]:
        """Members of the design that may be scored now."""
        return self._unscored([self.index[path] for batch in self._design for path in batch if path in self.index])

    def _in_question(self, indices: list[int]) -> list[int]:
        """Those that could add to what is expected if they lost nothing."""
        if not indices:
            return []
        expected = self._expected
        now = self.objective.value(expected)
        bounds = self.objective.bounds_at_no_loss(expected, [self.candidates[i] for i in indices])
        return [i for i, bound in zip(indices, bounds, strict=True) if bound > now * (1 + 1e-9)]

    @property
    def _scores_left(self) -> int:
        return self._screen - len(self._forecasts) - sum(p.fidelity == "fit" for p in self._pending) - self._failed_scores

    def _unscored(self, group: Sequence[int]) -> list[int]:
        """Members of a group that may be scored now."""
        closed = (self._forecasts, self.trained, self._dropped, {p.path for p in self._pending})
        free = [i for i in group if not any(self.candidates[i].path in paths for paths in closed)]
        return free if self._scores_left > 0 else []
