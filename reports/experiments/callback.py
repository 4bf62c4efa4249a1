"""A sweep's end: the tables of its experiment, printed and written into the sweep's folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from reports.experiments.document import Section, as_markdown, as_text
from reports.svg import Plot, picture
from sim.files import write_atomically
from sim.results import to_json
from sim.sweep.runs import Run, load_jobs


@dataclass(frozen=True)
class Findings:
    """What an experiment has to say."""

    title: str
    intro: str
    sections: Sequence[Section]
    values: Mapping[str, Any]
    """The same as numbers, for the JSON file."""
    plots: Sequence[Plot] = field(default_factory=tuple)


class ExperimentCallback(Callback):
    """Hydra callback that writes ``<name>.md``, ``<name>.json`` and the plots when a sweep is done."""

    name: str

    def findings(self, runs: Sequence[Run]) -> Findings:
        """Return what the runs of the sweep, all of which have answers, say. Raises UserError."""
        raise NotImplementedError

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        """Print the tables and write the files. Raises UserError for runs that cannot be compared."""
        folder = Path(config.hydra.sweep.dir)
        found = self.findings(load_jobs(folder))
        page = as_markdown(found.title, found.intro, found.sections)
        files = {
            f"{self.name}.md": page.encode(),
            f"{self.name}.json": to_json(found.values).encode(),
            **{f"{plot.name}.svg": picture(plot) for plot in found.plots},
        }
        for name, content in files.items():
            write_atomically(folder / name, content)
        print(f"\n{as_text(found.sections)}\n")
        print(*(folder / name for name in files), sep="\n")
