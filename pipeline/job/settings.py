"""The settings of one call of prepare: `Settings` as a user gives them, `Job` as workers get them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pipeline import sources
from pipeline.lists.plan import PlanOptions
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import CallError
from pipeline.recipe import Recipe, stage_hash
from pipeline.sources import FetchOptions
from pipeline.sources.rate_limit import RateLimit

if TYPE_CHECKING:
    from pipeline.job.media_stages import MediaStages
    from pipeline.sources.rehearsal import Rehearsal

SITE_BUDGET = 300.0  # videos an hour that a video site allows a guest

RATES = range(1, 61)  # frames a second
SHORT_SIDES = range(32, 2161, 2)  # pixels


@dataclass(frozen=True)
class Settings:
    """The options of `prepare`; every default stands here or in the options of its owner only."""

    manifests: tuple[str, ...]  # files or globs
    output: str  # ROOT, a folder or URL
    sources: tuple[str, ...] = ("youtube",)  # tried in order
    exclude: tuple[str, ...] = ()  # lists whose videos stay out of train
    flow: str = "tvl1"  # or none
    flow_device: str = "cpu"  # or cuda
    rate: int = EncodeRecipe.rate  # frames a second
    short_side: int = EncodeRecipe.short_side  # pixels
    plan: PlanOptions = field(default_factory=PlanOptions)
    work: str | None = None  # the work store; None: ROOT/work
    keep_sources: bool | None = None  # None: keep videos that were fetched over a network
    clean_work: bool = False  # delete the work store after publishing
    retry: str = "transient"  # failed rows to process again: transient, all or none
    wave: int | None = None  # videos a generation; None: all in one
    budget: float | None = None  # videos an hour for all workers; None: what the site allows a guest
    lanes: int | None = None  # videos fetched at a time; None: as many as there are workers
    pause: float = RateLimit.pause  # seconds that all workers wait when the site blocks them
    fetch: FetchOptions = field(default_factory=FetchOptions)
    ffmpeg: str | None = None  # None: the pinned encoder; another one is another recipe
    scratch: str | None = None  # a worker's temporary folder; None: TMPDIR, or /tmp
    shared: bool = False  # all workers see the folders of this call at the same paths
    start_timeout: float = 900.0  # seconds; a cluster's job is cancelled if no worker has started by then

    def __post_init__(self) -> None:
        if self.rate not in RATES:
            raise CallError(f"--rate is {self.rate}: give {RATES[0]} to {RATES[-1]} frames a second")
        if self.short_side not in SHORT_SIDES:
            least, most = SHORT_SIDES[0], SHORT_SIDES[-1]
            raise CallError(
                f"--short-side is {self.short_side}: give an even number of {least} to {most} pixels"
            )

    @property
    def hourly_budget(self) -> float | None:
        """Videos an hour for all workers; None where neither the user nor a video site limits it."""
        return self.budget or (SITE_BUDGET if "youtube" in self.sources else None)

    @property
    def pixels(self) -> float:
        """Pixels a second of a clip, as a multiple of the default recipe's."""
        return self.rate / EncodeRecipe.rate * (self.short_side / EncodeRecipe.short_side) ** 2


@dataclass(frozen=True)
class Job:
    """All that a worker must know; travels to every worker, so it holds plain values only."""

    output: str  # ROOT
    work: str  # the work store
    sources: tuple[str, ...]
    recipe: Recipe
    fetch: FetchOptions
    ffmpeg: str | None  # None: the reference encoder of the worker's own installation
    generation: str
    keep_sources: bool
    rate_limit: RateLimit = field(default_factory=RateLimit)
    scratch: str | None = None  # the workers' temporary folder; None: the machine's own
    local: bool = False  # workers are processes of this machine, not of a cluster
    kept: tuple[str, ...] = ()  # fetch hashes of other sizes in the work store, smallest first

    @property
    def clip_hash(self) -> str:
        """Names the last stage: the hash of all that decides a clip's bytes."""
        return stage_hash(self.recipe.fetch, self.recipe.encode, self.recipe.flow)

    @property
    def network(self) -> bool:
        """Whether videos come over a network."""
        return any(sources.parse(spec).network for spec in self.sources)

    @property
    def media(self) -> MediaStages | Rehearsal:
        """Makes the clips: stand-ins in a rehearsal."""
        from pipeline.job.media_stages import media_for

        return media_for(self.sources)

    @property
    def laned(self) -> bool:
        """Whether the plan's parts are lanes: one worker processes the videos of a part one by one."""
        return self.network and self.rate_limit.lanes is not None
