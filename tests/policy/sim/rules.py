"""The rules that keep an acknowledgement true; each can be taken out to see that its loss is found."""

RULES = {
    "majority": "a node acknowledges only while a majority of the members answered within a second",
    "bind": "who reports a member silent answers it no more under that version of the members",
    "votes": "only a majority of reports of the present version takes a member out",
    "barrier": "a subscription is granted when every member has confirmed the interest that contains it",
    "frozen": "what a dead node wanted is kept until its partitions have owners that speak for them",
    "fence": "the log takes nothing from an owner of an older epoch",
    "twice": "no start of a node is let in twice",
    "cover": "a node that has just come acknowledges nothing before it knows, for each partition, what its owner wants",
}
