"""``test.ping`` of a jail or VM: whether it runs."""


def ping():
    """
    Return True if the env runs.

    CLI Example:

    .. code-block:: bash

        salt -C 'T@cbsd' test.ping
    """
    return __resource_funcs__["cbsd.ping"]()
