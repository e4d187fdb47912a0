"""The course as a static site, by Sphinx and MyST-NB."""
