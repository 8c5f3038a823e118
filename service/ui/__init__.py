"""The page's files. They are served by service.routes.ui as they are: no build step, nothing from another host."""
