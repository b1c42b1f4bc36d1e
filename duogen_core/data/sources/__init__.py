"""Where training samples come from: sources of Documents, and mixtures of them.

The contract of a `Source` (base.py), the same for every format:
    len(source)                     how many samples, bad ones included; `endless` sources have no length
    source.read(index)              Sample or Bad. It never raises for what lies in the data, and reads only that sample
    source.label(index)             how a person finds it: "train.jsonl, line 7"
    source.epoch(seed, epoch)       an iterator over good samples, in an order that is a pure function of (seed, epoch);
                                    .position, and .skip(n), which reads nothing
    source.pick(seed, nth)          the sample of draw nth, over all epochs; source.reader(nth, readers): who had best
                                    read it
    source.identity()               plain JSON that a resumed run compares: it changes with the data, not with its place
Opening a source finds where its samples lie (a few bytes each are kept) and raises DuoGenError for a place that is not
there. A source holds no open file, so it can be sent to worker processes. Reading is that of
duogen_core.document.reading: strict, and no path leaves the folder.

    mixture = open_mixture(["2*documents:guides", {"source": "jsonl:train.jsonl", "weight": 1}, "sketchbook"], seed=0,
                           on_bad=BadLog("runs/x/bad_samples.jsonl"))
    sample = mixture.draw(k)        a pure function of (seed, k); bad samples are replaced, named and counted
    mixture.reader(k, readers)      None: anybody reads draw k at the same cost; else which of the readers had best
    mixture.fetch(k), .give({k: …}) what one process reads of a stream, for others that decode it
    for sample in mixture: ...      with rank and world; mixture.state_dict() and load_state_dict() for a resume
    DataLoader(mixture, batch_sampler=lists_of_k, collate_fn=...)    the same draws from worker processes; there, leave
                                    on_bad out and give the BadLog each sample.skipped in the main process

A new format: one file with a Source, one line in spec.KINDS, and the tests in tests/core/data/sources/test_sources.py.
"""

from duogen_core.data.sources.base import Bad, Epoch, Limits, Sample, Source
from duogen_core.data.sources.mixture import BadLog, Mixture
from duogen_core.data.sources.spec import (
    KINDS,
    Spec,
    open_mixture,
    open_source,
    parse_spec,
    parse_specs,
)

__all__ = [
    "KINDS",
    "Bad",
    "BadLog",
    "Epoch",
    "Limits",
    "Mixture",
    "Sample",
    "Source",
    "Spec",
    "open_mixture",
    "open_source",
    "parse_spec",
    "parse_specs",
]
