"""Common materials of neutron reflectometry, as plain data: what to begin a stack with.

Scattering length densities are nuclear, of natural isotopes where the formula names none; D is deuterium.
They follow from formula and density by the bound coherent scattering lengths of the package periodictable,
which a test compares. Absorption is proportional to the wavelength here, so the imaginary part holds at every
wavelength. A film is often less dense than the bulk, and scales with it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Material:
    """One material.

    Attributes:
        formula: numbers of atoms; "Ni[58]" is an isotope.
        density: mass density in g/cm^3.
        sld: real part of the scattering length density in 1e-6 per square angstrom.
        isld: imaginary part, absorption, in the same unit; not negative.
    """

    name: str
    formula: str
    density: float
    sld: float
    isld: float


# Liquids at 25 C; air dry, at 20 C and 1 atm. "silica" is amorphous: fused, or the oxide on silicon.
# Permalloy by atoms. Magnetic films have a magnetic part besides. Tails and head are those of DPPC as a gel,
# of 825 and 319 cubic angstrom; head-d13 has a deuterated choline.
MATERIALS = (
    Material("air", "N1.562O0.419Ar0.0093", 0.001204, 0.0043, 2.07e-07),
    Material("water", "H2O", 0.997, -0.5593, 6.17e-05),
    Material("heavy water", "D2O", 1.1044, 6.3562, 1.13e-07),
    Material("silicon", "Si", 2.329, 2.0729, 2.37e-05),
    Material("silica", "SiO2", 2.2, 3.4748, 1.05e-05),
    Material("quartz", "SiO2", 2.648, 4.1824, 1.26e-05),
    Material("sapphire", "Al2O3", 3.98, 5.7144, 3.02e-05),
    Material("germanium", "Ge", 5.323, 3.6125, 2.70e-04),
    Material("aluminium", "Al", 2.7, 2.0785, 3.87e-05),
    Material("titanium", "Ti", 4.506, -1.9105, 9.60e-04),
    Material("chromium", "Cr", 7.19, 3.0270, 7.06e-04),
    Material("iron", "Fe", 7.874, 8.0241, 6.04e-04),
    Material("cobalt", "Co", 8.9, 2.2645, 9.40e-03),
    Material("nickel", "Ni", 8.908, 9.4141, 1.14e-03),
    Material("nickel-58", "Ni[58]", 8.793, 13.1615, 1.17e-03),
    Material("permalloy", "Ni80Fe20", 8.7, 9.1312, 1.03e-03),
    Material("copper", "Cu", 8.96, 6.5535, 8.93e-04),
    Material("silver", "Ag", 10.49, 3.4682, 1.03e-02),
    Material("platinum", "Pt", 21.45, 6.3566, 1.90e-03),
    Material("gold", "Au", 19.3, 4.6617, 1.62e-02),
    Material("polystyrene", "C8H8", 1.05, 1.4116, 4.54e-05),
    Material("polystyrene-d8", "C8D8", 1.131, 6.4663, 5.43e-07),
    Material("PMMA", "C5H8O2", 1.18, 1.0587, 5.29e-05),
    Material("PMMA-d8", "C5D8O2", 1.275, 6.9700, 4.35e-07),
    Material("PDMS", "C2H6OSi", 0.965, 0.0630, 4.74e-05),
    Material("DPPC tails", "C30H62", 0.851, -0.3942, 6.99e-05),
    Material("DPPC tails-d62", "C30D62", 0.977, 7.4313, 4.63e-07),
    Material("phosphatidylcholine head", "C10H18NO8P", 1.62, 1.8825, 7.06e-05),
    Material("phosphatidylcholine head-d13", "C10H5D13NO8P", 1.688, 6.1239, 3.29e-05),
)
