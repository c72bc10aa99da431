"""Counts a data set's rows by outcome: after a run, and between the generations of one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline import dataset
from pipeline.job import pending_rows
from pipeline.outcome import EXCLUDED, FAILED, PROCESS
from pipeline.progress_line import duration
from pipeline.storage import Storage


@dataclass(frozen=True)
class Summary:
    """Rows by outcome over all generations, and the commonest failure."""

    generation: str | None  # the last one made; None: no row was pending
    counts: dict[str, int]
    failures: dict[str, int]  # by class
    example: str | None  # a reason of the commonest class, else why the commonest rows are excluded

    @classmethod
    def of(cls, root: Storage, generation: str | None) -> Summary:
        """Count the outcomes of a published data set, after a run that made `generation`."""
        outcomes = dataset.open(root).outcomes()
        failures: Counter[str] = Counter()
        example = None
        for outcome, column in ((EXCLUDED, "excluded_for"), (FAILED, "failure_class")):
            rows = outcomes.filter(pc.equal(outcomes["outcome"], outcome))
            causes = Counter(rows[column].to_pylist())
            for commonest, _ in causes.most_common(1):
                example = rows.filter(pc.equal(rows[column], commonest))["reason"][0].as_py()
            failures = causes
        return cls(generation, dict(Counter(outcomes["outcome"].to_pylist())), dict(failures), example)

    def lines(self, output: str) -> Iterator[str]:
        """The summary for a person; `output` is ROOT as the user gave it."""
        counts = ", ".join(f"{n} {name}" for name, n in sorted(self.counts.items(), reverse=True))
        yield f"{output}: {counts or 'no rows'}"
        if self.failures:
            causes = ", ".join(f"{n} {name}" for name, n in Counter(self.failures).most_common())
            yield f"failed: {causes} (each with its reason in {output}/outcomes)"
        if self.generation is None:
            yield "nothing to do: no row is left that may succeed now (see --retry)"
        else:
            yield f"published as generation {self.generation}"


def remaining(planned: pa.Table, root: Storage, budget: float | None) -> str:
    """Say how many rows of the plan are left, and how long they take with `budget` videos an hour; empty
    where none is left."""
    outcomes = dataset.open(root).outcomes()
    rows, decided = planned.num_rows, outcomes.num_rows
    if decided == rows:
        return ""
    left = pc.equal(planned["decision"], PROCESS).to_numpy().copy()
    left[pending_rows.as_published(planned, outcomes, root)[1]] = False
    videos = pc.count_distinct(planned["video"].filter(pa.array(left))).as_py()
    time = f", about {duration(3600 * videos / budget)} at this budget" if budget else ""
    return (
        f"prepare: {decided} of {rows} rows are decided and published; "
        f"{rows - decided} rows of {videos} videos are left{time}"
    )
