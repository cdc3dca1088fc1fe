// Scribe Ledger
package main

func main() {}
