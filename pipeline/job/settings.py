"""The settings of one call of prepare: `Settings` as a user gives them, `Job` as workers get them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from pipeline import sources
from pipeline.command_line import natural, option, positive
from pipeline.lists.options import PlanOptions
from pipeline.media.recipe import EncodeRecipe
from pipeline.outcome import CallError
from pipeline.sources import FetchOptions, usage
from pipeline.sources.base import SITE
from pipeline.sources.rate_limit import RateLimit

if TYPE_CHECKING:
    from pipeline.job.media_stages import MediaStages
    from pipeline.recipe import Recipe
    from pipeline.sources.rehearsal import Rehearsal

SITE_BUDGET = 300.0  # videos an hour that a video site allows a guest
RATES = range(1, 61)  # frames a second
SHORT_SIDES = range(32, 2161, 2)  # pixels
WHAT, WHERE, KEPT = "what is prepared", "where it runs", "what is kept"  # groups of options in help


@dataclass(frozen=True)
class Settings:
    """The options of `prepare`; every default stands here or in the options of its owner only."""

    manifests: tuple[str, ...] = option(
        "Kinetics lists, files or globs", unit="FILE", group=WHAT, flag="--manifest"
    )
    output: str = option("where the data set is published, a folder or URL", unit="ROOT", group=WHAT)
    exclude: tuple[str, ...] = option("lists of videos that must not be in train", (), "FILE", WHAT)
    classes: str | None = option(
        "the label map, one class a line", None, "FILE", WHAT, shown="the labels of the lists"
    )
    flow: Literal["tvl1", "none"] = option("optical flow", "tvl1", group=WHAT)
    rate: int = option("of every clip", EncodeRecipe.rate, "frames per second", WHAT, parse=natural)
    short_side: int = option("of every clip", EncodeRecipe.short_side, "pixels", WHAT, parse=natural)
    retry: Literal["transient", "all", "none"] = option(
        "failed rows to process again", "transient", group=WHAT
    )
    sources: tuple[str, ...] = option(
        f"{usage()}; tried in order",
        ("youtube",),
        "SOURCE",
        "where videos come from",
        shown="youtube",
        flag="--source",
    )
    budget: float | None = option(
        "requests of all workers together",
        None,
        "videos per hour",
        SITE,
        shown=f"{SITE_BUDGET:g} for youtube, which blocks guests that ask for more; else no limit",
        parse=positive,
    )
    lanes: int | None = option(
        "videos fetched at a time", None, "N", SITE, shown="one for each worker", parse=natural
    )
    pause: float = option(
        "wait of all workers when the site blocks them", RateLimit.pause, "seconds", SITE, parse=positive
    )
    fetch: FetchOptions = field(default_factory=FetchOptions)
    flow_device: Literal["cpu", "cuda"] = option("processor that computes the flow", "cpu", group=WHERE)
    ffmpeg: str | None = option(
        "another encoder, which makes another recipe", None, "PATH", WHERE, shown="the pinned one"
    )
    scratch: str | None = option(
        "a worker's temporary folder for videos", None, "FOLDER", WHERE, shown="TMPDIR, or /tmp"
    )
    shared: bool = option(
        "on a cluster: all workers have the folders of this call at the same paths", False, group=WHERE
    )
    start_timeout: float = option(
        "on a cluster: cancel the job if no worker has started by then",
        900.0,
        "seconds",
        WHERE,
        shown="900 seconds, for a cluster may have to start machines first",
        parse=positive,
    )
    work: str | None = option(
        "the work store, which keeps the results of every stage", None, "DIR", KEPT, shown="ROOT/work"
    )
    keep_sources: bool | None = option(
        "keep fetched videos in the work store, so that no later change fetches again",
        None,
        group=KEPT,
        shown="yes for videos from a network",
    )
    clean_work: bool = option("delete the work store after publishing", False, group=KEPT)
    wave: int | None = option(
        "publish a generation after every N videos (a tar.gz of archive: is read once a wave)",
        None,
        "N",
        KEPT,
        shown="one generation of all",
        parse=natural,
    )
    plan: PlanOptions = field(default_factory=PlanOptions)

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
        from pipeline.recipe import stage_hash  # imports NumPy, which --help need not wait for

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
