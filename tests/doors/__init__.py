"""Every architecture of the catalogue at every door of the library, against plain torch."""
