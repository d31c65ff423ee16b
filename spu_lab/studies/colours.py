"""The colour of each method, the same in all pictures."""

METHOD_COLOURS = {
    "TNGD": "#0072b2",
    "Adam": "#d55e00",
    "SGD": "#e69f00",
    "NGD": "#009e73",
    "NGD-CG": "#56b4e9",
    "NGD-Woodbury": "#cc79a7",
    "K-FAC": "#7a5195",
    "TNGD-Adam": "#003f5c",
    "TNGD, SPRING": "#4c9be8",
    "L-BFGS": "#8c6d31",
    "SSBroyden": "#111827",
}
"""By name; hues of Okabe and Ito first, which colour-blind readers can distinguish."""
