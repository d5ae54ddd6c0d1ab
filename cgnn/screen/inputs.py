"""Inputs of first-principles calculations of the finalists: folders for VASP, potentials by name only."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cgnn.errors import DataError
from cgnn.files import write_text

STRAINS = {"normal": (-0.01, -0.005, 0.005, 0.01), "shear": (-0.06, -0.03, 0.03, 0.06)}
"""Strains of the deformed cells, those of the Materials Project."""

_WAYS = {
    "relax": "1. `relax/`: cell and atoms (MPRelaxSet).",
    "static": "2. `static/`: energy and density of the relaxed cell (MPStaticSet). POSCAR holds the cell as screened: "
    "copy `relax/CONTCAR` over it first.",
    "elastic": "3. `elastic/`: {count} deformed cells, in which only atoms relax (MPRelaxSet, ISIF = 2). They are "
    "deformations of the cell as screened, good for a first look; for final moduli make them again from the relaxed "
    "one: `cgnn.screen.inputs.write_elastic(Structure.from_file('relax/CONTCAR'), 'elastic')`. The stresses at the "
    "deformations of `deformation.txt` give the elastic tensor "
    "(`pymatgen.analysis.elasticity.ElasticTensor.from_independent_strains`).",
}
_POTENTIALS = """`POTCAR.spec` names the potentials; their content is licensed with VASP and is not here. With the
potentials of your licence set up for pymatgen (`PMG_VASP_PSP_DIR`), make a POTCAR in each folder:

    python -c "
    from pymatgen.io.vasp import Potcar
    Potcar(open('POTCAR.spec').read().split(), '{functional}').write_file('POTCAR')"
"""


def write_inputs(structure: Any, folder: str | Path, sets: Sequence[str], title: str) -> None:
    """Write the inputs of one crystal, each calculation into a folder of its own, and a README beside them.

    Args:
        structure: pymatgen ``Structure``; its primitive standard cell is written.
        folder: Where to.
        sets: Of ``relax``, ``static`` and ``elastic``.
        title: What the crystal is called.

    Raises:
        DataError: pymatgen has no inputs for it, such as for elements without a potential; says why.

    Source: pymatgen's ``MPRelaxSet`` and ``MPStaticSet``; deformations as in de Jong et al., Sci. Data 2, 150009
    (2015), doi:10.1038/sdata.2015.9.
    """
    folder = Path(folder)
    cell = _primitive(structure)
    count, functional = 0, "PBE"
    for name in sets:
        if name == "elastic":
            count = write_elastic(cell, folder / name)
        else:
            functional = _write_set(_input_set(name, cell), folder / name)
    lines = [f"# {title}", "", "Calculations with VASP, in this order:", ""]
    lines += [_WAYS[name].format(count=count) for name in _WAYS if name in sets]
    write_text(folder / "README.md", "\n".join([*lines, "", _POTENTIALS.format(functional=functional)]))


def write_elastic(structure: Any, folder: str | Path) -> int:
    """Write the deformed cells of a relaxed crystal, those that symmetry makes equal once; return their number.

    Args:
        structure: pymatgen ``Structure``.
        folder: Where to: ``01/``, ``02/``, ... with the deformation gradient in ``deformation.txt``.

    Raises:
        DataError: pymatgen has no inputs for it.
    """
    from pymatgen.analysis.elasticity import DeformedStructureSet

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of spglib's and pymatgen's future versions
        cells = DeformedStructureSet(structure, STRAINS["normal"], STRAINS["shear"], symmetry=True)
    for number, (cell, gradient) in enumerate(zip(cells, cells.deformations, strict=True), 1):
        place = Path(folder) / f"{number:02d}"
        _write_set(_input_set("elastic", cell), place)
        rows = "\n".join(" ".join(f"{entry:.10f}" for entry in row) for row in np.asarray(gradient))
        write_text(place / "deformation.txt", f"{rows}\n")
    return len(cells)


def _primitive(structure: Any) -> Any:
    from pymatgen.symmetry.analyzer import SpacegroupAnalyzer, SymmetryUndeterminedError

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as above
        try:
            return SpacegroupAnalyzer(structure, symprec=0.1).get_primitive_standard_structure()
        except (SymmetryUndeterminedError, ValueError, TypeError):
            return structure.get_primitive_structure()


def _input_set(name: str, structure: Any) -> Any:
    from pymatgen.io.vasp.sets import MPRelaxSet, MPStaticSet

    if name == "static":
        return MPStaticSet(structure)
    changes = {"ISIF": 2, "EDIFF": 1e-6, "LREAL": False} if name == "elastic" else {}
    return MPRelaxSet(structure, user_incar_settings=changes)


def _write_set(inputs: Any, folder: Path) -> str:
    """Write INCAR, KPOINTS, POSCAR and the names of the potentials; return the functional of these."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of potentials that are newer in other sets
        try:
            files = {
                "INCAR": str(inputs.incar),
                "KPOINTS": str(inputs.kpoints),
                "POSCAR": inputs.poscar.get_str(significant_figures=16),
                "POTCAR.spec": "\n".join(inputs.potcar_symbols),
            }
        except (KeyError, ValueError) as error:
            raise DataError(f"pymatgen has no inputs for {structure_name(inputs)}: {error}") from None
    for name, content in files.items():
        write_text(folder / name, f"{content.rstrip()}\n")
    return str(inputs.potcar_functional or "PBE")


def structure_name(inputs: Any) -> str:
    """Return the formula of the crystal of a set of inputs."""
    return str(inputs.structure.composition.reduced_formula)
