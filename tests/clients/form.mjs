// fetch and FormData as they come with Node: some versions write no CR LF after the last boundary.
import { readFile } from 'node:fs/promises'
import { basename } from 'node:path'

const [url, path] = process.argv.slice(2)
const form = new FormData()
form.append('note', 'a field before the file')
form.append('file', new File([await readFile(path)], basename(path)))
const headers = { Authorization: `Bearer ${process.env.API_KEY}` }
const answer = await fetch(url, { method: 'POST', headers, body: form })
console.log(JSON.stringify({ status: answer.status, body: await answer.json() }))
