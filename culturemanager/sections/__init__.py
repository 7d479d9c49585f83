"""The parts of a project file, a model each; each field is explained under itself. `config` puts them together."""
