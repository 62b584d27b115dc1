"""Who does the work on a set: this process, several, or the actors of a cluster. A crew turns shards into receipts."""
