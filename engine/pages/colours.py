"""The colours of the page's scales, for light and dark; from low to high."""

VIRIDIS = ["#440154", "#482878", "#3e4a89", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6dcd59", "#b4de2c", "#fde725"]
COLOURS = {
    "light": {
        "sequential": [
            "#ffffe5",
            "#f7fcb9",
            "#d9f0a3",
            "#a5dbb0",
            "#5fc0b8",
            "#2c9fbf",
            "#2274b3",
            "#23519e",
            "#253080",
            "#14184f",
        ],
        "diverging": [
            "#7f3b08",
            "#b35806",
            "#e08214",
            "#fdb863",
            "#fee0b6",
            "#f7f7f7",
            "#d8daeb",
            "#b2abd2",
            "#8073ac",
            "#542788",
            "#2d004b",
        ],
        "undefined": "#b9bec5",
    },
    "dark": {
        "sequential": VIRIDIS,
        "diverging": [
            "#fdb863",
            "#e08214",
            "#b35806",
            "#7f3b08",
            "#3a2310",
            "#1c2024",
            "#251c40",
            "#4b2d80",
            "#7a62b8",
            "#a99bdc",
            "#d6cff2",
        ],
        "undefined": "#5c636b",
    },
}
