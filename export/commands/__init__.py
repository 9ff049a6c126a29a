"""The commands of the export, loaded by the command line only when they are used."""
