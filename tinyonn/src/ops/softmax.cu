// What a softmax whose maximum is not known yet begins with.

const float LOG2_E = 1.4426950408889634f;
// The score of a hidden key, far below LOWEST, which is below every other: exp(HIDDEN - LOWEST) is 0 where a query has seen nothing yet.
const float HIDDEN = -1e38f;
const float LOWEST = -1e30f;
