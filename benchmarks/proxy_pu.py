"""A data set in which the truth is known, made to look like one of positives and unlabelled crystals.

python benchmarks/proxy_pu.py --output runs/pu/proxy.parquet
cgnn pu fit configs/synthesizability.yaml -o data.path=runs/pu/proxy.parquet -o pu.column=label --output runs/pu/proxy

Positive is what lies below a threshold of a property, for example a formation energy below -1 eV/atom. Of these a
share gets a label, drawn by the seed; the others stand among the unlabelled with everything above the threshold. The
column ``truth`` says what they are, and is for scoring only.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from study import DATA, ROOT

if TYPE_CHECKING:
    import pandas as pd

STRUCTURE = ["immutable_id", "nsites", "lattice_vectors", "cartesian_site_positions", "species_at_sites"]


def hide(table: pd.DataFrame, column: str, below: float, share: float, seed: int = 0) -> pd.DataFrame:
    """Return the structures with ``label`` (1: a labelled positive, 0: unlabelled) and ``truth`` (1: positive).

    Args:
        table: Structures and the property.
        column: The property; rows without it are left out.
        below: Positive is what lies below.
        share: Of the positives, how many get a label.
        seed: Draws these.
    """
    known = table[table[column].notna()]
    truth = (known[column] < below).to_numpy()
    positives = np.flatnonzero(truth)
    labelled = np.random.default_rng(seed).permutation(positives)[: round(share * len(positives))]
    label = np.zeros(len(known), dtype=np.int64)
    label[labelled] = 1
    return known[STRUCTURE].assign(label=label, truth=truth.astype(np.int64)).reset_index(drop=True)


def main() -> None:
    """Write the data set and say what is in it."""
    import pandas as pd

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "formation_energy.parquet")
    parser.add_argument("--column", default="formation_energy_per_atom")
    parser.add_argument("--below", type=float, default=-1.0)
    parser.add_argument("--share", type=float, default=0.3, help="of the positives that get a label")
    parser.add_argument("--only", type=int, help="so many rows, drawn by the seed")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "pu" / "proxy.parquet")
    asked = parser.parse_args()
    table = pd.read_parquet(asked.data)
    if asked.only:
        table = table.sample(min(asked.only, len(table)), random_state=asked.seed)
    found = hide(table, asked.column, asked.below, asked.share, asked.seed)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    found.to_parquet(asked.output)
    unlabelled = found[found.label == 0]
    print(f"{asked.output}: {len(found):,} crystals, {found.label.sum():,} labelled positives,")
    print(f"{len(unlabelled):,} unlabelled, of which {unlabelled.truth.mean():.1%} are positive (alpha)")


if __name__ == "__main__":
    main()
