"""
What can be done with a jail or VM that is targeted as a resource: ``cbsd`` without the name.

:depends: the managing minion's execution module ``cbsd``; results and errors are its own
"""

__func_alias__ = {"exec_": "exec"}


def status():
    """
    Return whether it runs, as ``cbsd.status`` does.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@cbsd:lb1' cbsd.status
    """
    return __resource_funcs__["cbsd.call"]("status")


def start():
    """
    Start it, unless it runs.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@cbsd:lb1' cbsd.start
    """
    return __resource_funcs__["cbsd.call"]("start")


def stop():
    """
    Stop it, and mean it: it is not healed.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@cbsd:lb1' cbsd.stop
    """
    return __resource_funcs__["cbsd.call"]("stop")


def restart():
    """
    Stop it, look, and start it.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@cbsd:lb1' cbsd.restart
    """
    return __resource_funcs__["cbsd.call"]("restart")


def exec_(command, timeout=300):
    """
    Run a program in it.

    command
        A list: program and its arguments.
    timeout
        Seconds.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@cbsd:lb1' cbsd.exec '[service, nginx, onestatus]'
    """
    return __resource_funcs__["cbsd.call"]("exec", command, timeout=timeout)
