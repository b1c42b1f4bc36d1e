"""The commands of the command line that have no room of their own. Each: add_arguments(parser) and run(args) -> int."""
