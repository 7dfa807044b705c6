"""What the documentation site adds to the Markdown pages."""
