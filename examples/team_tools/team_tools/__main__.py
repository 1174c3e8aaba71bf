"""`python -m team_tools`: the tools for the process that starts this one, over its pipes.

Nobody tells who calls over them. So whoever starts the process may call all three, unless TEAM_TOOLS_SECRET is set:
then the token in NATTERJACK_TOKEN says who it is.
"""

from team_tools.tools import server_of_environment

server_of_environment(trusted=True).run(stdio=True)
