"""Pictures of maps over photos, and the HTML report of a scored run."""
