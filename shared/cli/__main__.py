from shared.cli.commands import cli

cli(prog_name="askfolder")
