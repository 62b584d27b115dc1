"""Results as figures: charts that show in a notebook and become PNG, SVG, PDF or HTML."""
