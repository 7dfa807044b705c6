"""New plugins from templates (``dlmrl plugin new``), and a report card of installed ones (``dlmrl plugin check``)."""
