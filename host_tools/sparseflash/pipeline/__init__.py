"""The stages, artefact in, artefact out."""
