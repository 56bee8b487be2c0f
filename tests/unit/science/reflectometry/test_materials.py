"""The table of materials against the package periodictable."""

from __future__ import annotations

import re

import pytest
from periodictable import neutron_sld

from guidehall.science.reflectometry.materials import MATERIALS, Material

# The table has four decimals of the real part and three digits of the imaginary one.
HALF_A_DIGIT = 0.51e-4
# Of thermal neutrons, and of the longest that reflectometers use: absorption must not tell them apart.
WAVELENGTHS = (1.798, 20.0)


@pytest.mark.parametrize("material", MATERIALS, ids=lambda material: material.name)
@pytest.mark.parametrize("wavelength", WAVELENGTHS)
def test_densities_follow_from_formula_and_density(material: Material, wavelength: float) -> None:
    sld, isld, _ = neutron_sld(material.formula, density=material.density, wavelength=wavelength)
    assert material.sld == pytest.approx(sld, abs=HALF_A_DIGIT, rel=0)
    assert material.isld == pytest.approx(isld, rel=5e-3)


@pytest.mark.parametrize(
    ("name", "sld"),
    # As textbooks round them: a wrong mass density would not fail above.
    [("silicon", 2.07), ("silica", 3.47), ("quartz", 4.18), ("sapphire", 5.7), ("gold", 4.66),
     ("nickel", 9.4), ("titanium", -1.91), ("chromium", 3.03), ("copper", 6.55), ("iron", 8.02),
     ("permalloy", 9.1), ("nickel-58", 13.1), ("water", -0.56), ("heavy water", 6.36), ("polystyrene", 1.41),
     ("polystyrene-d8", 6.47), ("PMMA", 1.06), ("PMMA-d8", 7.0), ("DPPC tails", -0.39),
     ("phosphatidylcholine head", 1.9), ("air", 0.0)],
)  # fmt: skip
def test_they_are_what_is_commonly_used(name: str, sld: float) -> None:
    (found,) = (material for material in MATERIALS if material.name == name)
    assert found.sld == pytest.approx(sld, abs=0.08)


def test_names_are_told_apart_and_deuterium_is_named() -> None:
    assert len({material.name for material in MATERIALS}) == len(MATERIALS) >= 25
    for material in MATERIALS:
        deuterated = re.search(r"D(?![a-z])", material.formula) is not None
        assert deuterated == bool(re.search(r"-d\d+$|^heavy", material.name)), material
