"""Pictures: attention overlays, galleries, figures, the HTML report of a slide."""
