/* Mends that no setting of the theme offers; each says what it mends. */
